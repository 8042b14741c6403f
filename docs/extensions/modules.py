"""The directive ``modules``: all modules of a package, each with what the first paragraph of its docstring says."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def summaries(package: str) -> Iterator[tuple[str, str]]:
    """Iterate over the modules of a package.

    Args:
        package: The name of the package.

    Yields:
        The name of a module, and the first paragraph of its docstring.
    """
    folders = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(folders, f"{package}."):
        docstring = inspect.getdoc(importlib.import_module(module.name)) or ""
        yield module.name, docstring.partition("\n\n")[0].replace("\n", " ")


class Modules(SphinxDirective):
    """List the modules of a package, so that ``:mod:`` finds them.

    Example::

        .. modules:: pyterrier_selfdistill
    """

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a list of definitions."""
        lines = []
        for name, summary in summaries(self.arguments[0]):
            lines += [f".. py:module:: {name}", "", f"``{name}``", f"    {summary}", ""]
        return self.parse_text_to_nodes(StringList(lines, source="modules"))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("modules", Modules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
