"""Count the functions and files of the package that two journeys cross, and measure its size.

``python -m benchmarks.journeys`` indexes three documents and searches them, trains with validation, and prints how many
of the package's own functions and files Python entered on the way; then a table of lines, modules and single importers.
"""

import ast
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pandas as pd
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

import pyterrier_selfdistill
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer

ROOT = Path(pyterrier_selfdistill.__file__).parent
DOCUMENTS = [{"docno": f"d{number}", "text": text} for number, text in enumerate(["sort rows", "read files", "plot"])]


def make_encoder() -> SelfDistillBiEncoder:
    """Make an encoder of static vectors, since the journeys are about our code and not about the model's."""
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "sort": 2, "rows": 3, "read": 4, "files": 5, "plot": 6}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    modules: list[nn.Module] = [StaticEmbedding(tokenizer, embedding_dim=8), Normalize()]
    return SelfDistillBiEncoder(SentenceTransformer(modules=modules, device="cpu"), dtype="float32")


def index_and_search(folder: str) -> None:
    """Index three documents and search them."""
    encoder = make_encoder()
    index = SelfDistillIndex(f"{folder}/index.flex", verbose=False)
    pipeline: Any = encoder >> index
    pipeline.index(DOCUMENTS)
    pipeline.search("sort rows")


def train(folder: str) -> None:
    """Train with the results of judged queries, and validate by re-ranking them."""
    topics = pd.DataFrame({"qid": ["q0", "q1", "q2"], "query": ["sort", "read", "plot"]})
    qrels = pd.DataFrame({"qid": ["q0", "q1", "q2"], "docno": ["d0", "d1", "d2"], "label": [1, 1, 1]})
    results = topics.merge(pd.DataFrame(DOCUMENTS), how="cross")
    trainer = SelfDistillTrainer(make_encoder(), f"{folder}/run", verbose=False)
    trainer.fit(results, qrels, results, qrels)


def crossed(journey: Callable[[str], None]) -> set[tuple[str, str]]:
    """Return the files and functions of the package that Python enters."""
    entered = set()

    def watch(frame: Any, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(ROOT)) and not frame.f_code.co_name.startswith("<"):
            entered.add((name, frame.f_code.co_qualname))

    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(watch)
        try:
            journey(folder)
        finally:
            sys.setprofile(None)
    return entered


def docstring_lines(tree: ast.Module) -> set[int]:
    """Find the lines of the strings that stand alone: docstrings of modules, classes, functions and constants."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.update(range(node.lineno, cast(int, node.end_lineno) + 1))
    return lines


def code_lines(text: str, documented: set[int]) -> int:
    """Count the lines of a module that are neither blank, nor a comment, nor of a docstring."""
    code = 0
    for number, line in enumerate(text.splitlines(), start=1):
        code += bool(line.strip()) and not line.strip().startswith("#") and number not in documented
    return code


def importers(trees: dict[str, ast.Module]) -> Counter[str]:
    """Count the modules of the package that import each of its modules."""
    counts: Counter[str] = Counter()
    for name, tree in trees.items():
        package = name.split(".")[:-1]
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                module = ".".join(filter(None, base))
                imported |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        counts.update(imported & trees.keys())
    return counts


def sizes() -> pd.DataFrame:
    """Measure the package as it lies there, one row a measure."""
    texts = {path.relative_to(ROOT).with_suffix("").as_posix(): path.read_text() for path in ROOT.rglob("*.py")}
    trees = {name.replace("/", "."): ast.parse(text) for name, text in texts.items()}
    words = Counter(re.findall(r"\w+", "\n".join(texts.values())))
    functions = [node.name for tree in trees.values() for node in tree.body if isinstance(node, ast.FunctionDef)]
    lines = sum(text.count("\n") for text in texts.values())
    documented = {name: docstring_lines(tree) for name, tree in trees.items()}
    code = sum(code_lines(text, documented[name.replace("/", ".")]) for name, text in texts.items())
    counts = importers(trees)
    single = [name for name in trees if counts[name] == 1]
    once = sum(words[name] <= 2 for name in functions)
    rooms: Counter[str] = Counter()
    for name, text in texts.items():
        rooms[name.partition("/")[0] + ("/" if "/" in name else ".py")] += text.count("\n")
    measures: list[tuple[str, Any]] = [
        ("lines", lines),
        ("modules", len(texts)),
        *((f"lines of {room}", number) for room, number in sorted(rooms.items())),
        ("modules with a single importer", len(single)),
        ("functions of modules", len(functions)),
        ("of these named once besides their definition", once),
        ("docstring lines a line of code", round(sum(map(len, documented.values())) / code, 2)),
    ]
    for name, journey in {"index and search": index_and_search, "fit with validation": train}.items():
        entered = crossed(journey)
        measures.append((f"{name}: functions", len(entered)))
        measures.append((f"{name}: files", len({file for file, _ in entered})))
    return pd.DataFrame(measures, columns=["measure", "value"])


if __name__ == "__main__":
    print(sizes().to_string(index=False))
