"""The site: its directives, links and signatures, without building it."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Annotated

import nbformat
import pytest
from torch import nn

pytest.importorskip("sphinx", reason="the site needs pip install .[docs]")

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDE = ROOT / "pyterrier_selfdistill" / "pt_docs"


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, DOCS / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_the_site_shows_is_linked_and_not_copied():
    links = {path.name: path.resolve() for path in DOCS.iterdir() if path.is_symlink()}
    assert links["guide"] == GUIDE
    assert {"benchmarks", "examples", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"} < set(links)
    assert all(target.exists() and ROOT in target.parents for target in links.values())


def test_every_page_is_listed_once():
    listing = "".join((GUIDE / page).read_text() for page in ("index.rst", "api.rst"))
    listed = re.findall(r"^ {4}(?:\S.* <)?([a-z_/-]+)>?$", listing, flags=re.MULTILINE)
    pages = {path.relative_to(GUIDE).with_suffix("").as_posix() for path in GUIDE.rglob("*.rst")}
    assert sorted(listed) == sorted(pages - {"index"})


def test_pages_of_the_guide_lie_elsewhere_on_the_site():
    content = [(GUIDE / "index.rst").read_text()]
    repository = load("extensions/repository.py")
    repository.prefix_guide(type("App", (), {"srcdir": DOCS}), Path("guide/index.rst"), "index", content)
    assert "    Overview <guide/overview>\n" in content[0]
    assert "<https://arxiv.org/abs/2407.21515>" in content[0]


def test_modules_say_what_they_are_for():
    modules = dict(load("extensions/modules.py").summaries("pyterrier_selfdistill"))
    assert modules["pyterrier_selfdistill.utils.checks"] == "Check options by their types."
    assert all(modules.values())


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("other.html#there", None),
        ("#here", None),
        ("https://elsewhere.org/page#anchor", None),
        ("missing.html", "no such file"),
        ("other.html#nowhere", "no such anchor"),
        ("mailto:nDCG@10", "write a measure as"),
    ],
)
def test_links_are_checked(link, fault, tmp_path):
    (tmp_path / "page.html").write_text(f'<p id="here"><a href="{link}">a link</a></p>')
    (tmp_path / "other.html").write_text('<h1 id="there"></h1>')
    broken = list(load("check_links.py").broken_links(tmp_path))
    assert len(broken) == (fault is not None)
    assert all(fault in line and link in line for line in broken)


def test_signatures_have_types_without_checks():
    signatures = load("extensions/signatures.py")

    class Indexer:
        def __init__(self, size: Annotated[int, "a check"] = 3) -> None: ...

    signatures.drop_checks(Indexer.__init__)
    assert Indexer.__init__.__annotations__ == {"size": int, "return": type(None)}
    assert str(signatures.constructor(nn.Module.__init__)) == "()"


def test_notebooks_are_stored_without_texts_logs_and_paths():
    v4 = nbformat.v4
    shown = v4.new_output("display_data", {"text/plain": "/home/me/.venv/lib/model"})
    logged = v4.new_output("stream", name="stderr", text="10 %")
    printed = v4.new_output("stream", text="done")
    cells = [
        v4.new_code_cell("a", outputs=[shown, logged, printed]),
        v4.new_code_cell("b", outputs=[shown], metadata={"tags": ["texts"]}),
        v4.new_code_cell("c", outputs=[printed], metadata={"tags": ["remove-stdout"]}),
    ]
    notebook = v4.new_notebook(cells=cells)
    load("run_notebooks.py").strip(notebook, "/home/me/.venv")
    stored = [cell.outputs for cell in notebook.cells]
    assert stored == [[v4.new_output("display_data", {"text/plain": ".venv/lib/model"}), printed], [], []]
