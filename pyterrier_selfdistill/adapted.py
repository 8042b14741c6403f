"""An encoder with an adapter: merged into plain weights, or saved without its base.

The adapter alone takes little of the disk, refers to its base by path or by name on the hub, and is of no use where the
base is not. Folders that all three readers read, packages, uploads and graphs have plain weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from . import persistence
from .adapters import adapters_of, merged, require_plain, saved_base_of_adapter
from .options import FolderPath, checked
from .variants import HasVariants


class WithAdapter(HasVariants):
    """An encoder whose model may have an adapter."""

    def merge_adapter(self) -> Self:
        """Make an encoder of plain weights, into which the adapter is merged.

        It encodes faster, and can be saved, exported and shared as any other. Its vectors are the same but for
        rounding, and its checksum is another: search with the one that you index with.

        Returns:
            An encoder with weights of its own; this one stays as it is.

        Raises:
            ValueError: If the encoder has no adapter, or PEFT cannot merge one of this kind.
        """
        if not adapters_of(self.model):
            raise ValueError(f"{self!r} has no adapter to merge: its weights are plain already")
        return self._variant(merged(self.model))

    @checked
    def save_adapter(self, path: FolderPath, *, overwrite: bool = False) -> Path:
        """Write the adapter without its base to a folder, atomically.

        ``pt.Artifact.load(path)`` and ``SentenceTransformer(path)`` read it, as long as the base is where it was:
        ``adapter_config.json`` says where, and the metadata which checksum it has. ``pyterrier_dr.SBertBiEncoder`` 0.8
        reads no folder without a base; save :meth:`merge_adapter` for that. What is loaded has the checksum of this
        encoder.

        Args:
            path: The folder to write.
            overwrite: Whether to replace an encoder that is there.

        Returns:
            The folder.

        Raises:
            ValueError: If the encoder has no adapter, or several, or its base is not where it was loaded from.
            FileExistsError: If the folder is there and ``overwrite`` is not set, or holds something else than an
                encoder.
            FolderInUseError: If another process writes it.
            OSError: If it may not be written, or the disk is full.
        """
        saved_base_of_adapter(self.model)
        path = Path(path).expanduser()
        persistence.save(self.model, self._metadata(), path, overwrite=overwrite)
        self.path = path
        self.name = str(path)
        return path

    def build_package(self, *arguments: Any, **options: Any) -> str:
        """Write the folder of the encoder to one file, as PyTerrier's artifacts do; an adapter is merged first."""
        require_plain(self.model, "a package")
        return super().build_package(*arguments, **options)

    def to_hf(self, *arguments: Any, **options: Any) -> None:
        """Upload the folder of the encoder, as PyTerrier's artifacts do; an adapter is merged first."""
        require_plain(self.model, "an upload")
        super().to_hf(*arguments, **options)

    def _metadata(self) -> Mapping[str, Any]:
        """Describe the model."""
        raise NotImplementedError
