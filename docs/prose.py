"""Count mannerisms in the prose of the project, per 1,000 words: ``python docs/prose.py``.

Read are the pages of the documentation, the Markdown files of the repository, and all docstrings.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MANNERISMS = {
    "'what' outside questions": r"\bwhat\b(?![^.?!:;]*\?)",
    "'that of', 'those that'": r"\b(that of|those (that|of|who|which))\b",
    "'beside'": r"\bbeside\b",
    "'of its own', 'of their own'": r"\bof (its|their|your|his) own\b",
    "'all the same', 'as it is'": r"\b(all the same|as it is|as they are)\b",
    "'is an error', 'is no'": r"\b(is|are) (an error|no|none)\b",
    "'you', 'your'": r"\byour?s?\b",
    "'for example', 'such as'": r"\b(for example|such as|for instance)\b",
}
CODE = [
    r"(?s)```.*?```",
    r"(?m)^\.\. (code-block|math|list-table|csv-table|toctree|autoclass|autofunction|related)::.*\n((?:[ \t]+.*)?\n)*",
    r"(?m)^ *\.\. code-block::.*\n(\n|(?:(?: {4,}|\t).*\n))*",
    r"(?m)^ *>>> .*\n( *\S.*\n)*",
    r"``.*?``|`[^`]*`",
    r"(?m)^\|.*\|$",
    r"<[^>]*>",
]


def prose() -> Iterator[tuple[str, str]]:
    """Read all prose, as pairs of its place and its text without code."""
    places = {
        "pages": [*ROOT.glob("pyterrier_selfdistill/pt_docs/*.rst"), *ROOT.glob("docs/*.rst")],
        "Markdown": [*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md")],
        "docstrings": ROOT.glob("pyterrier_selfdistill/**/*.py"),
    }
    for place, paths in places.items():
        for path in paths:
            text = path.read_text()
            if path.suffix == ".py":
                kinds = ast.Module | ast.ClassDef | ast.FunctionDef
                nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
                text = "\n\n".join(ast.get_docstring(node) or "" for node in nodes)
            for code in CODE:
                text = re.sub(code, " ", text)
            yield place, text


def main() -> None:
    """Print a table of the places and their mannerisms."""
    texts: dict[str, str] = {}
    for place, text in prose():
        texts[place] = texts.get(place, "") + "\n" + text
    texts["all"] = "\n".join(texts.values())
    words = {place: len(re.findall(r"[A-Za-z]+", text)) for place, text in texts.items()}
    print(f"{'per 1,000 words':32}" + "".join(f"{place:>12}" for place in texts))
    print(f"{'words':32}" + "".join(f"{count:12,}" for count in words.values()))
    for name, pattern in MANNERISMS.items():
        found = {place: len(re.findall(pattern, text, re.IGNORECASE)) for place, text in texts.items()}
        print(f"{name:32}" + "".join(f"{1000 * found[place] / words[place]:12.1f}" for place in texts))


if __name__ == "__main__":
    main()
