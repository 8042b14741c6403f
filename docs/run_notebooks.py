"""Run notebooks, and store what they show: ``python docs/run_notebooks.py NOTEBOOK ...``.

What shows texts of a collection, in cells with the tag ``texts``, is not stored, since these belong to others; nor are
progress bars, the logs of cells with the tag ``remove-stdout``, and the place of the environment.
"""

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient


def is_stored(cell: Any, output: Any) -> bool:
    """Tell whether an output of a cell is stored."""
    tags = cell.metadata.get("tags", [])
    if output.output_type == "stream":
        return output.name == "stdout" and "remove-stdout" not in tags
    return "texts" not in tags


def strip(notebook: Any, environment: str) -> None:
    """Remove from a notebook what is not stored.

    Args:
        notebook: The notebook, which has been run.
        environment: Where the environment lies that it has been run in.
    """
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it was run
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if is_stored(cell, output)]
        for output in cell.outputs:
            for kind, shown in output.get("data", {}).items():
                if isinstance(shown, str):
                    output["data"][kind] = shown.replace(environment, ".venv")


def main() -> None:
    """Run the notebooks of the command line."""
    for path in map(Path, sys.argv[1:]):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(path.parent)}}).execute()
        strip(notebook, sys.prefix)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
