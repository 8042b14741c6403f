"""What is written about a model for others to read: nothing of this machine's folders, and no secret."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

SECRET = re.compile(r"(token|secret|password|api_key)$")
"""How names of settings end whose values are nobody's business, such as ``hub_token``."""

ABSOLUTE_PATH = re.compile(
    r"""
    (?<! [\w.:/\\-] )                # not inside of a URL, of a name on the hub, or of a relative path
    (?: file:// | ~\w* | [A-Za-z]: )?
    (?: [/\\] [^\s/\\'"`,;()\[\]{}]+ )+
    """,
    re.VERBOSE,
)
"""An absolute path, or one in a home folder, in a text."""


def portable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce settings to JSON that may be shown to anybody.

    Secrets are left out. Of each absolute path, be it a value, a key or a part of a text, the last name stays, and so
    it does of the folder of a base model.

    Args:
        settings: Nested dictionaries and lists. What JSON does not know becomes a string.

    Returns:
        The settings.

    Example:
        >>> portable_settings({"hub_token": "hf_x", "seed": 7, "data": {"source": "/home/me/triples.tsv"}})
        {'seed': 7, 'data': {'source': 'triples.tsv'}}
    """
    # tuples, paths and enums first become what they are when they are read again
    portable = _portable(json.loads(json.dumps(settings, default=str)))
    base_model = portable.get("base_model")
    if isinstance(base_model, dict):
        base_model["name"] = portable_name(base_model.get("name"))
    return portable


def portable_name(name: str | None) -> str | None:
    """Reduce the name of a model to what others know: its name on the hub, or the last one of its path.

    Args:
        name: The name, or a path of this machine.

    Returns:
        The name.

    Example:
        >>> portable_name("microsoft/mpnet-base"), portable_name("/models/mine")
        ('microsoft/mpnet-base', 'mine')
    """
    # a relative path of a folder looks like the name of a model on the hub
    if name and (_is_absolute(name) or Path(name).exists()):
        return _last_name(name)
    return name


def _portable(value: Any) -> Any:
    """Reduce nested values."""
    if isinstance(value, dict):
        kept = {}
        for name, item in value.items():
            if not SECRET.search(name):
                kept[_portable(name)] = _portable(item)
        return kept
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, str):
        return _last_name(value) if _is_absolute(value) else _without_paths(value)
    return value


def _without_paths(text: str) -> str:
    """Keep only the last name of each absolute path in a text."""
    return ABSOLUTE_PATH.sub(lambda path: _last_name(path[0]), text)


def _is_absolute(path: str) -> bool:
    return path.startswith(("/", "~", "file:/")) or PureWindowsPath(path).is_absolute()


def _last_name(path: str) -> str:
    # the paths of Windows have two kinds of separators, and those of others one of them
    return PureWindowsPath(path).name
