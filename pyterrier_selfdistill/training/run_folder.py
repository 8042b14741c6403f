"""The folder of a run: model, checkpoints, history."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import pandas as pd
import pyterrier as pt
from sentence_transformers.util import get_world_size
from transformers import TrainerState

from ..encoder.adapters import adapters_of
from ..encoder.biencoder import SelfDistillBiEncoder
from ..encoder.storage import is_saved_encoder
from ..utils.folders import folder_lock, portable_settings
from ..utils.processes import agree
from .history import plot_history

logger = logging.getLogger(__name__)

TRAINER_STATE = "trainer_state.json"
"""The file of a checkpoint that transformers writes last, so a checkpoint without it was cut off."""

SETTINGS = "settings.json"
"""The file that says what makes the run, written before its first checkpoint."""

LOG = "log.json"
"""The file with the log of a finished run, written when all else is."""


class RunFolder:
    """The output folder of a run.

    Args:
        path: The folder. It is made when a run claims it.

    Attributes:
        path: The folder.
        model: The folder of the trained encoder.
        adapter: The folder of its adapter.
        history: The file with the history.
        plot: The file with the drawing of the history.
        checkpoints: The folder with what is needed to go on.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     run = RunFolder(f"{parent}/run")
        ...     with run.lock():
        ...         checkpoint = run.claim({"seed": 42}, resume=False, overwrite=False)
        ...     [path.name for path in run.checkpoints.iterdir()]
        ['settings.json']
        >>> checkpoint is None
        True
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / "model"
        self.adapter = self.path / "adapter"
        self.history = self.path / "history.csv"
        self.plot = self.path / "history.png"
        self.checkpoints = self.path / "checkpoints"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of the folder, from before it is claimed until its model is written."""
        with ExitStack() as stack:
            agree(lambda: stack.enter_context(folder_lock(self.path, "training an encoder")))
            yield

    def claim(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Path | None:
        """Take the folder for a run, and find the checkpoint to resume from.

        Args:
            settings: What decides on the result of the run. A run is resumed only with the same.
            resume: Whether to go on from the last complete checkpoint, if there is one.
            overwrite: Whether to replace what another run left. Its model stays until there is another.

        Returns:
            The checkpoint to resume from; None to begin anew, or if a run that is finished has none.

        Raises:
            FileExistsError: If the folder holds a run that is neither to be resumed nor replaced, one to be resumed
                that has a model but neither a checkpoint nor a log, or something that is no run.
            ValueError: If the run to resume had other settings.
        """
        return agree(partial(self._claim, settings, resume, overwrite))

    def _claim(self, settings: Mapping[str, Any], resume: bool, overwrite: bool) -> Path | None:
        self._require_run()
        if overwrite:
            self._remove_checkpoints()
        else:
            self._require_free(resume)
        complete = self._complete_checkpoints()
        # as they read in the file of an earlier run, without what is nobody's business
        recorded = portable_settings(settings)
        if complete or self._is_finished():
            self._require_same_settings(recorded)
            complete = list(filter(_has_all_states, complete))
        self._remove_cut_off(complete)
        if complete:
            return max(complete, key=_step)
        if self._is_finished():
            return None
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        _write_json(self._settings_file, recorded)
        return None

    def is_finished(self) -> bool:
        """Tell whether the run in the folder has trained to its end and has written its model."""
        return agree(self._is_finished)

    def _is_finished(self) -> bool:
        return self._log_file.exists() and self.model.exists()

    def load(self, first: SelfDistillBiEncoder) -> tuple[SelfDistillBiEncoder, list[dict[str, Any]]]:
        """Read what a finished run has made.

        Args:
            first: The encoder that it began with, whose options the trained one gets.

        Returns:
            The trained encoder, and the log of its training.
        """
        logger.info("the run in %s is finished already: there is nothing to train", self.path)
        encoder = SelfDistillBiEncoder(
            self.model,
            batch_size=first.batch_size,
            text_field=first.text_field,
            verbose=first.verbose,
            device=first.device,
            dtype=first.dtype,
        )
        return encoder, json.loads(self._log_file.read_text())

    def save(
        self, encoder: SelfDistillBiEncoder, history: pd.DataFrame, log: Sequence[Mapping[str, Any]]
    ) -> SelfDistillBiEncoder:
        """Write the trained encoder and the history of its training.

        Args:
            encoder: The encoder.
            history: What :func:`.history.history_frame` returns.
            log: What it was made of.

        Returns:
            The encoder; if it has an adapter, that of plain weights.
        """
        if adapters_of(encoder.model):
            agree(partial(encoder.save_adapter, self.adapter, overwrite=True))
            encoder = encoder.merge_adapter()
        else:
            agree(self._remove_adapter)
        agree(partial(self._save, encoder, history, log))
        # as the first process, which has saved it
        encoder.path = self.model
        encoder.name = str(self.model)
        return encoder

    def _remove_adapter(self) -> None:
        """Remove the adapter of an earlier run."""
        if is_saved_encoder(self.adapter):
            shutil.rmtree(self.adapter)

    def _save(self, encoder: SelfDistillBiEncoder, history: pd.DataFrame, log: Sequence[Mapping[str, Any]]) -> None:
        encoder.save(self.model, overwrite=True)
        with pt.io.finalized_open(str(self.history), "t") as table:
            history.to_csv(table, index=False)
        with pt.io.finalized_open(str(self.plot), "b") as drawing:
            plot_history(history).savefig(cast(IO[bytes], drawing), dpi=150, format="png")
        _write_json(self._log_file, log)

    @property
    def _settings_file(self) -> Path:
        return self.checkpoints / SETTINGS

    @property
    def _log_file(self) -> Path:
        return self.checkpoints / LOG

    def _require_run(self) -> None:
        """Check that there are no checkpoints of somebody else, which would be replaced."""
        if not self.checkpoints.exists() or self._settings_file.exists():
            return
        found = sorted(path.name for path in self.checkpoints.iterdir() if not path.name.startswith("."))
        if found:
            raise FileExistsError(
                f"{str(self.checkpoints)!r} holds {found[:3]} and no {SETTINGS}, so no run of this package wrote it; "
                "choose another output_dir"
            )

    def _require_free(self, resume: bool) -> None:
        """Check that no run is in the folder, or one that can be resumed if it is to be."""
        finished = self.model.exists()
        # one that saves the best checkpoints only has none if the start was best
        resumable = bool(self._complete_checkpoints()) or self._is_finished()
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
        earlier = json.loads(self._settings_file.read_text())
        changes = []
        for name in sorted(settings.keys() | earlier.keys()):
            before, now = earlier.get(name), settings.get(name)
            if before != now:
                changes.append(f"{name} was {before} and is {now}")
        if changes:
            raise ValueError(
                f"resume=True, but the run in {str(self.path)!r} had other settings: {'; '.join(changes)}. Set them as "
                "they were, or begin anew with overwrite=True"
            )

    def _complete_checkpoints(self) -> list[Path]:
        """List the checkpoints that were not cut off while they were written."""
        states = self.checkpoints.glob(f"checkpoint-*/{TRAINER_STATE}")
        return [state.parent for state in states if _is_json(state)]

    def _remove_cut_off(self, complete: Sequence[Path]) -> None:
        """Remove what a killed run has left half-written: checkpoints and files."""
        for checkpoint in self.checkpoints.glob("checkpoint-*"):
            if checkpoint not in complete:
                shutil.rmtree(checkpoint)
        for folder in (self.path, self.checkpoints):
            for file in folder.glob(".*.tmp*"):
                file.unlink()

    def _remove_checkpoints(self) -> None:
        """Remove what an earlier run left, the settings last: until then the folder is known for a run's."""
        if not self.checkpoints.exists():
            return
        # a run that is half removed is not finished
        self._log_file.unlink(missing_ok=True)
        for path in self.checkpoints.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self._settings_file:
                path.unlink()
        self._settings_file.unlink(missing_ok=True)


def is_over(state: TrainerState) -> bool:
    """Tell whether training was over when a checkpoint was written.

    Args:
        state: The state in the checkpoint.

    Returns:
        Whether all steps were made, or training stopped early.

    Example:
        >>> is_over(TrainerState(global_step=5, max_steps=10)), is_over(TrainerState(global_step=10, max_steps=10))
        (False, True)
    """
    # read from a file, these are states and not callbacks
    states = cast(dict[str, Any], state.stateful_callbacks or {})
    control = states.get("TrainerControl", {}).get("args", {})
    return state.global_step >= state.max_steps or control.get("should_training_stop", False)


def _write_json(path: Path, content: Any) -> None:
    """Write a file atomically."""
    with pt.io.finalized_open(str(path), "b") as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def _is_json(path: Path) -> bool:
    """Tell whether a file holds JSON to its end."""
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def _has_all_states(checkpoint: Path) -> bool:
    """Tell whether each of several processes has written the state of its random numbers, which none waits for."""
    processes = get_world_size()
    if processes == 1:
        return True
    return all((checkpoint / f"rng_state_{rank}.pth").exists() for rank in range(processes))


def _step(checkpoint: Path) -> int:
    """Read the step of a checkpoint from its name."""
    return int(checkpoint.name.rpartition("-")[2])
