"""Models for other runtimes: the folder of an encoder, with a graph that needs neither torch nor this package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from . import persistence
from .adapters import require_plain
from .extras import load_extra
from .int8 import write_graph
from .options import FolderPath, checked
from .precision import copied


class Exports:
    """An encoder that is exported."""

    model: SentenceTransformer
    precision: str

    @checked
    def export(self, path: FolderPath, *, overwrite: bool = False) -> Path:
        """Write the model to a folder as :meth:`save` does, with its graph in OpenVINO's format, atomically.

        The graph is ``openvino/openvino_model.xml``, or ``openvino/openvino_model_qint8_quantized.xml`` if the encoder
        encodes in int8, where sentence-transformers' own backend looks for it. It takes ``input_ids``,
        ``attention_mask`` and what else the tokenizer of the folder gives for texts, prompts put before them, and gives
        ``last_hidden_state`` and ``sentence_embedding``, which is the unit vector. This package reads the folder too,
        from its float32 weights; the encoder itself stays where it is.

        Args:
            path: The folder to write.
            overwrite: Whether to replace an encoder that is there.

        Returns:
            The folder.

        Raises:
            ImportError: If OpenVINO is not installed: ``pip install pyterrier-selfdistill[int8]``.
            ValueError: If OpenVINO cannot convert the model, or it has an adapter.
            FileExistsError: If the folder is there and ``overwrite`` is not set, or holds something else than an
                encoder.
            FolderInUseError: If another process writes it.
            OSError: If it may not be written, or the disk is full.
        """
        load_extra("openvino")
        require_plain(self.model, "a graph")
        path = Path(path).expanduser()
        model = copied(self.model, torch.float32).to("cpu")
        write = partial(write_graph, model, int8=self.precision == "int8")
        persistence.save(self.model, self._metadata(), path, overwrite=overwrite, write_more=write)
        return path

    def _metadata(self) -> Mapping[str, Any]:
        """Describe the model."""
        raise NotImplementedError
