"""The output folder of a run: what is in it, and whether a run may begin or go on there.

::

    output_dir/
        model/         the encoder at its best checkpoint, as SelfDistillBiEncoder.save writes it
        history.csv    loss, margin, target, learning rate and measures, by step
        history.png    the same, drawn
        checkpoints/   what is needed to go on: checkpoints of transformers, the settings of the run, mined negatives
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ..biencoder import SelfDistillBiEncoder
from .history import plot_history

TRAINER_STATE = "trainer_state.json"
"""The file of a checkpoint that transformers writes last, so a checkpoint without it was cut off."""


class RunFolder:
    """The output folder of a run.

    Args:
        path: The folder. It is made when a run claims it.

    Attributes:
        path: The folder.
        model: The folder of the trained encoder.
        history: The file with the history.
        plot: The file with the drawing of the history.
        checkpoints: The folder with what is needed to go on.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     run = RunFolder(f"{parent}/run")
        ...     checkpoint = run.claim({"seed": 42}, resume=False, overwrite=False)
        ...     [path.name for path in run.checkpoints.iterdir()]
        ['settings.json']
        >>> checkpoint is None
        True
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / "model"
        self.history = self.path / "history.csv"
        self.plot = self.path / "history.png"
        self.checkpoints = self.path / "checkpoints"

    def claim(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Path | None:
        """Take the folder for a run, and find the checkpoint to resume from.

        Args:
            settings: What makes the run: data, loss, arguments, seed. A run is resumed only with the same ones.
            resume: Whether to go on from the last complete checkpoint, if there is one.
            overwrite: Whether to replace what another run left. Its model stays until there is another.

        Returns:
            The checkpoint to resume from, or None to begin anew.

        Raises:
            FileExistsError: If the folder holds a run that is neither to be resumed nor replaced, or one to be resumed
                that has a model but no checkpoint.
            ValueError: If the run to resume had other settings.
        """
        if overwrite:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        else:
            self._require_free(resume)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        # as they read in the file of an earlier run; arguments may be enums and other objects
        recorded = json.loads(json.dumps(settings, default=str))
        complete = self._complete_checkpoints()
        if not complete:
            self._settings_file.write_text(json.dumps(recorded, indent=2) + "\n")
            return None
        self._require_same_settings(recorded)
        return max(complete, key=_step)

    def save(self, encoder: SelfDistillBiEncoder, history: pd.DataFrame) -> None:
        """Write the trained encoder and the history of its training.

        Args:
            encoder: The encoder.
            history: What :func:`.history.history_frame` returns.
        """
        encoder.save(self.model, overwrite=True)
        history.to_csv(self.history, index=False)
        plot_history(history).savefig(self.plot, dpi=150)

    @property
    def _settings_file(self) -> Path:
        """The file with the settings of the run."""
        return self.checkpoints / "settings.json"

    def _require_free(self, resume: bool) -> None:
        """Check that no run is in the folder, or one that can be resumed if it is to be."""
        finished = self.model.exists()
        resumable = bool(self._complete_checkpoints())
        if resume and finished and not resumable:
            raise FileExistsError(
                f"{str(self.path)!r} holds a model but no checkpoint to resume from; load the model with "
                "pt.Artifact.load, or train another with overwrite=True"
            )
        if not resume and (finished or resumable):
            raise FileExistsError(
                f"{str(self.path)!r} holds a run; go on with resume=True, replace it with overwrite=True, or choose "
                "another output_dir"
            )

    def _require_same_settings(self, settings: dict[str, Any]) -> None:
        """Check that the run in the folder had the same settings."""
        earlier = {}
        if self._settings_file.exists():
            earlier = json.loads(self._settings_file.read_text())
        changes = []
        for name, value in settings.items():
            if value != earlier.get(name):
                changes.append(f"{name} was {earlier.get(name)} and is {value}")
        if changes:
            raise ValueError(
                f"resume=True, but the run in {str(self.path)!r} had other settings: {'; '.join(changes)}. Set them as "
                "they were, or begin anew with overwrite=True"
            )

    def _complete_checkpoints(self) -> list[Path]:
        """List the checkpoints that were not cut off while they were written."""
        states = self.checkpoints.glob(f"checkpoint-*/{TRAINER_STATE}")
        return [state.parent for state in states if _is_json(state)]


def _is_json(path: Path) -> bool:
    """Tell whether a file holds JSON to its end."""
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def _step(checkpoint: Path) -> int:
    """Read the step of a checkpoint from its name."""
    return int(checkpoint.name.rpartition("-")[2])
