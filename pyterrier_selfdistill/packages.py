"""Packaged artifacts on this machine, by ``file:`` URLs.

``Artifact.build_package`` makes one file of an artifact, and ``Artifact.from_url`` loads it from the web. PyTerrier 1.1
does not do so from a disk; the resolver of ``file:`` URLs here lets it, for all artifacts.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import ParseResult
from urllib.request import url2pathname

import pyterrier as pt
from lz4.frame import LZ4FrameFile


def resolve_file_url(url: ParseResult) -> str:
    """Unpacks a package into PyTerrier's cache of artifacts, once.

    Args:
        url: The URL of what ``Artifact.build_package`` has made, or of the folder of an artifact.

    Returns:
        The folder with the artifact.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the package is not what its metadata says.

    Example:
        ::

            pt.Artifact.load("my-model").build_package("my-model.tar.lz4")
            encoder = pt.Artifact.from_url("file:///data/my-model.tar.lz4")
    """
    path = Path(url2pathname(url.path))
    if path.is_dir():
        return str(path)
    sidecar = Path(f"{path}.json")
    metadata = json.loads(sidecar.read_text()) if sidecar.is_file() else {}
    parts = [Path(f"{path}.{i}") for i in range(len(metadata["segments"]))] if "segments" in metadata else [path]
    if missing := [str(part) for part in parts if not part.is_file()]:
        raise FileNotFoundError(
            f"there is no file {missing[0]!r}; give the URL of what artifact.build_package(path) made"
        )
    state = [(str(part), part.stat().st_size, part.stat().st_mtime_ns) for part in parts]
    key = hashlib.sha256(repr((state, metadata.get("expected_sha256"))).encode()).hexdigest()
    target = Path(pt.io.pyterrier_home()) / "artifacts" / key
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            folder = stack.enter_context(pt.io.finalized_directory(str(target)))
            stream: Any = stack.enter_context(pt.io.MultiReader(stack.enter_context(part.open("rb")) for part in parts))
            if "expected_sha256" in metadata:
                stream = stack.enter_context(pt.io.HashReader(stream, expected=metadata["expected_sha256"]))
            content = stack.enter_context(LZ4FrameFile(stream))
            archive = stack.enter_context(tarfile.open(fileobj=content, mode="r|"))
            archive.extractall(folder, filter="data")
            while content.read(1 << 20):  # what follows the archive counts for the checksum
                pass
    return str(target)
