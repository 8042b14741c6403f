"""Turn links to files of the repository into links to their pages on the site.

For example, ``[Architecture](pyterrier_selfdistill/pt_docs/architecture.rst)`` in a Markdown page leads to the page on
architecture, and the path ``benchmarks/SPEED.md`` in code type becomes a link. The index of the site includes
``guide/index.rst``, whose pages get the prefix ``guide/``.
"""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDE = REPOSITORY / "pyterrier_selfdistill" / "pt_docs"


def pages(env: BuildEnvironment) -> dict[Path, str]:
    """Return the names of all pages by the file that they are made of, which notebooks name without its suffix."""
    known = {}
    for name in env.found_docs:
        file = Path(env.doc2path(name)).resolve()
        known[file] = known[file.with_suffix("")] = name
    return known


def prefix_guide(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """Let the index of the site list the pages of the guide."""
    if Path(app.srcdir, path).resolve() == GUIDE / "index.rst":
        links = r"(^ +\S.* <|:doc:`(?:[^`<]* <)?)([\w/-]+[>`])"
        content[0] = re.sub(links, r"\1guide/\2", content[0], flags=re.MULTILINE)


def link_pages(app: Sphinx, document: nodes.document) -> None:
    """Let the links of a Markdown page to files of the repository, and paths in code type, lead to their pages."""
    known = pages(app.env)
    origin = Path(app.env.doc2path(app.env.docname)).resolve()
    for link in list(document.findall(addnodes.pending_xref)):
        if link["reftype"] == "myst":
            replace_link(link, (origin.parent / link["reftarget"]).resolve(), known)
    for literal in list(document.findall(nodes.literal)):
        page = known.get(REPOSITORY / literal.astext())
        inside_link = isinstance(literal.parent, (nodes.reference, addnodes.pending_xref))
        if page and page != app.env.docname and not inside_link:
            literal.replace_self(page_link(page, app.env.docname, [literal.deepcopy()]))


def replace_link(link: addnodes.pending_xref, target: Path, known: dict[Path, str]) -> None:
    """Replace a link to a file of the repository, by its text if the site has no page of it."""
    if target in known:
        link.replace_self(page_link(known[target], link["refdoc"], link.children))
    elif target.is_file():
        link.replace_self(link.children)


def page_link(page: str, origin: str, content: list[nodes.Node]) -> addnodes.pending_xref:
    """Make a link from a page to another."""
    options = {"refdomain": "std", "reftype": "doc", "refdoc": origin, "refexplicit": True, "refwarn": True}
    return addnodes.pending_xref("", *content, reftarget=f"/{page}", **options)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register what is done when pages are read."""
    app.connect("include-read", prefix_guide)
    app.connect("doctree-read", link_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
