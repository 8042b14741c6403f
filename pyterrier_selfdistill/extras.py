"""Packages that only some need: loaded where they are used, with an error that says which extra brings them."""

from __future__ import annotations

import importlib
from typing import Any

EXTRAS = {"openvino": "int8", "peft": "adapters", "ray": "ray", "ray.data": "ray"}
"""The extra of this package that brings a module."""


def load_extra(module: str) -> Any:
    """Import a module that an extra brings.

    Args:
        module: The name of the module.

    Returns:
        The module.

    Raises:
        ImportError: If it, or what it needs itself, is not installed.

    Example:
        >>> load_extra("openvino").__name__
        'openvino'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs {module}, which is not installed: pip install 'pyterrier-selfdistill[{EXTRAS[module]}]' "
            f"({error})"
        ) from error
