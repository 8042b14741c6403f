"""Packages: an artifact in one file, which loads from this machine too, and unpacks to nothing but files in one folder.

``artifact.build_package(path)`` writes a tar archive, compressed with LZ4, with its checksum in a file beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import pyterrier as pt
from lz4.frame import LZ4FrameFile

from .io import atomic_folder

MAX_FILES = 10_000
"""How many files and folders a package may unpack to."""

MAX_BYTES = 1 << 28
"""How many bytes any package may unpack to."""

MAX_RATIO = 20
"""How many bytes each byte of a larger package may unpack to; compressing weights and vectors saves a tenth of them."""


class LocalPackages(pt.Artifact):
    """An artifact whose packages load from this machine too.

    PyTerrier 1.1.2 writes a package to disk with ``build_package``, but ``from_url`` reads one from the web only.
    Delete, and inherit ``from_url`` from ``pt.Artifact``, when that takes ``file:`` URLs and limits what it unpacks.
    """

    @classmethod
    def from_url(cls, url: str, *, expected_sha256: str | None = None, **options: Any) -> pt.Artifact:
        """Load an artifact from the URL of its package, on the web or on this machine.

        Args:
            url: The URL of what ``build_package`` made, such as ``"file:///data/my-model.tar.lz4"``, or of the folder
                of an artifact.
            expected_sha256: The checksum of the package, if not the one in the file beside it.
            **options: Arguments of the class.

        Returns:
            The artifact.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the URL names another machine, or the package does not have its checksum, holds something
                else than files of its own folder, or unpacks to more than is allowed.
        """
        parsed = urlparse(url)
        if parsed.scheme != "file":
            return super().from_url(url, expected_sha256=expected_sha256, **options)
        if parsed.netloc not in ("", "localhost"):
            raise ValueError(
                f"the URL {url!r} names a file of the machine {parsed.netloc!r}; files of this one have three slashes: "
                "file:///data/my-model.tar.lz4"
            )
        path = Path(url2pathname(parsed.path))
        if not path.is_dir():
            path = Package(path, expected_sha256).unpack()
        return cls.load(str(path), **options)


class Package:
    """The files of a package on this machine.

    Args:
        path: The file, or the name of several, ``path.0`` and so on.
        expected_sha256: The checksum, if not the one in ``path.json``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ``path.json`` is damaged.

    Attributes:
        segments: The files, one after another.
        checksum: The checksum that they are to have, if it is known.
    """

    def __init__(self, path: Path, expected_sha256: str | None) -> None:
        metadata = _read_metadata(Path(f"{path}.json"))
        self.checksum = expected_sha256 or metadata.get("expected_sha256")
        self.segments = [path]
        if "segments" in metadata:
            self.segments = [Path(f"{path}.{number}") for number in range(len(metadata["segments"]))]
        for segment in self.segments:
            if not segment.is_file():
                raise FileNotFoundError(
                    f"there is no file {str(segment)!r}; give the URL of what artifact.build_package(path) made"
                )

    def unpack(self) -> Path:
        """Unpack into PyTerrier's cache of artifacts, once.

        Returns:
            The folder.

        Raises:
            ValueError: If the package does not have its checksum, holds something else than files of its own folder, or
                unpacks to more than is allowed.
        """
        status = [segment.stat() for segment in self.segments]
        # a package that was built again at the same path is another
        signature = [
            (str(path), file.st_size, file.st_mtime_ns) for path, file in zip(self.segments, status, strict=True)
        ]
        name = hashlib.sha256(repr((signature, self.checksum)).encode()).hexdigest()
        target = Path(pt.io.pyterrier_home()) / "artifacts" / name
        size = sum(file.st_size for file in status)
        try:
            if not target.exists():
                with atomic_folder(target, doing="unpacking a package", wait=True) as folder:
                    self._extract(folder, max(MAX_BYTES, MAX_RATIO * size))
        except FileExistsError:
            # another process was faster
            if not target.exists():
                raise
        except (tarfile.TarError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"{str(self.segments[0])!r} is not a package, or damaged: {error}; copy it again"
            ) from error
        return target

    def _extract(self, folder: Path, max_bytes: int) -> None:
        """Extract the archive, and verify its checksum."""
        with ExitStack() as stack:
            opened = [stack.enter_context(segment.open("rb")) for segment in self.segments]
            stream: Any = stack.enter_context(pt.io.MultiReader(iter(opened)))
            if self.checksum is not None:
                stream = stack.enter_context(pt.io.HashReader(stream, expected=self.checksum))
            content = LimitedReader(stack.enter_context(LZ4FrameFile(stream)), max_bytes)
            archive = stack.enter_context(tarfile.open(fileobj=content, mode="r|"))
            for number, member in enumerate(archive):
                if number >= MAX_FILES:
                    raise ValueError(f"the package holds more than {MAX_FILES} files, and is not unpacked")
                _require_plain(member)
                archive.extract(member, folder, filter="data")
            # what follows the archive counts for the checksum
            while content.read(1 << 20):
                pass


class LimitedReader(io.RawIOBase):
    """Reads what another reader does, up to a number of bytes.

    Args:
        reader: The other reader.
        max_bytes: How many bytes to read before it is an error.
    """

    def __init__(self, reader: Any, max_bytes: int) -> None:
        self._reader = reader
        self._max_bytes = max_bytes
        self._read = 0

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes, or all."""
        # no more than one too many, whatever is asked for
        left = self._max_bytes - self._read + 1
        if size < 0 or size > left:
            size = left
        content = self._reader.read(size)
        self._read += len(content)
        if self._read > self._max_bytes:
            raise ValueError(
                f"the package unpacks to more than {self._max_bytes} bytes, which is more than weights and vectors do, "
                "and is not unpacked"
            )
        return content


def _require_plain(member: tarfile.TarInfo) -> None:
    """Check that a part of an archive is a file or a folder; where it lies is checked when it is extracted."""
    if member.issparse() or not (member.isfile() or member.isdir()):
        raise ValueError(
            f"the package holds {member.name!r}, which is neither a file nor a folder, and is not unpacked; packages "
            "have no links and no devices"
        )


def _read_metadata(path: Path) -> dict[str, Any]:
    """Read the file beside a package, if it is there."""
    if not path.is_file():
        return {}
    try:
        metadata = json.loads(path.read_text())
        is_known = isinstance(metadata.get("expected_sha256", ""), str) and isinstance(
            metadata.get("segments", []), list
        )
    except (ValueError, AttributeError, RecursionError):
        is_known = False
    if not is_known:
        raise ValueError(
            f"{str(path)!r} is not what artifact.build_package(path) wrote; copy it again with the package"
        )
    return metadata
