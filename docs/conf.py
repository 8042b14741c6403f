"""How Sphinx builds the site: ``make docs``.

The folder links to the pages in the repository: ``guide`` has the pages that PyTerrier's site builds too,
``benchmarks`` the results, and ``examples`` the notebooks.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

from pyterrier_selfdistill import __version__

project = "pyterrier-selfdistill"
author = "The pyterrier-selfdistill developers"
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
    "mathml",
    "signatures",
    "repository",
]

exclude_patterns = [
    "_build",
    "guide/index.rst",  # index.rst includes it
]
language = "en"

# -- Python ------------------------------------------------------------------------------------------------------------

napoleon_custom_sections = [("Inputs", "returns_style")]
napoleon_use_ivar = True  # attributes in a list, like parameters
autodoc_default_options = {"member-order": "bysource"}
autodoc_inherit_docstrings = False  # as on PyTerrier's site
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# -- Links -------------------------------------------------------------------------------------------------------------

# To other projects, for which their lists of names are downloaded. Without a network the names stand there unlinked.
if os.environ.get("DOCS_LINK_OTHERS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_timeout = 30
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "pyterrier": ("https://pyterrier.readthedocs.io/en/latest", None),
    }

nitpicky = True
nitpick_ignore_regex = [
    # names of other projects, which may be linked or not, see above
    (r"py:.*", r"(collections|pathlib|typing|errno)(\..*)?"),
    (r"py:.*", r"(np|numpy|pd|pandas|torch|nn|pt|pyterrier|pyterrier_dr|sentence_transformers)(\..*)?"),
    (r"py:.*", r"(ir_measures|ray|datasets|matplotlib)(\..*)?"),
    (r"py:class", r"pyterrier_selfdistill\.distributed\.Result"),  # a type variable
]

# -- Markdown and the notebook -----------------------------------------------------------------------------------------

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # the anchors that GitHub gives to headings
nb_execution_mode = "off"  # notebooks show what they have stored (make notebooks)
nb_output_stderr = "remove"  # progress bars
nb_render_markdown_format = "myst"  # the page about a model has a table

# -- Buttons that copy code, but neither prompts nor outputs -----------------------------------------------------------

copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_selector = ":not(.output, .highlight-text, .highlight-json) > div.highlight > pre"

# -- HTML --------------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
pygments_dark_style = "github-dark"
