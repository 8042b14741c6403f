"""The directive ``how-to`` of PyTerrier's site: a section, whose title is a question."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class HowTo(SphinxDirective):
    """Make a section of a question and what answers it.

    Example::

        .. how-to:: How do I re-rank the results of BM25?

            With an encoder behind it.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return the section."""
        title = self.arguments[0]
        text, messages = self.state.inline_text(title, self.lineno)
        section = nodes.section("", nodes.title(title, "", *text), names=[nodes.fully_normalize_name(title)])
        self.state.document.note_implicit_target(section)
        self.state.nested_parse(self.content, self.content_offset, section)
        return [section, *messages]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("how-to", HowTo)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
