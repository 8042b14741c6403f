"""The folder of a run: model, checkpoints, history."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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

# the file of a checkpoint that transformers writes last, so that a checkpoint without it was cut off
TRAINER_STATE = "trainer_state.json"
SETTINGS = "settings.json"  # the file with the settings of the run, written before its first checkpoint
LOG = "log.json"  # the file with the log of a finished run, written last


class RunFolder:
    """The output folder of a run; it is made when a run claims it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / "model"
        self.adapter = self.path / "adapter"
        self.checkpoints = self.path / "checkpoints"
        self._settings_file = self.checkpoints / SETTINGS
        self._log_file = self.checkpoints / LOG

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of the folder."""
        with ExitStack() as stack:
            agree(lambda: stack.enter_context(folder_lock(self.path, "training an encoder")))
            yield

    def claim(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Path | None:
        """Make the folder that of a run with these settings, and return the checkpoint to go on from, if any."""
        return agree(lambda: self._claim(portable_settings(settings), resume, overwrite))

    def _claim(self, settings: dict[str, Any], resume: bool, overwrite: bool) -> Path | None:
        self._require_ours()
        if overwrite:
            self._remove_checkpoints()
        complete = [state.parent for state in self.checkpoints.glob(f"checkpoint-*/{TRAINER_STATE}") if _is_json(state)]
        if not overwrite:
            self._require_free(bool(complete), resume)
        if complete or self._is_finished():
            self._require_same_settings(settings)
            complete = [checkpoint for checkpoint in complete if _has_states_of_all_processes(checkpoint)]
        for checkpoint in set(self.checkpoints.glob("checkpoint-*")) - set(complete):
            shutil.rmtree(checkpoint)
        for left in [*self.path.glob(".*.tmp*"), *self.checkpoints.glob(".*.tmp*")]:
            left.unlink()
        if complete:
            return max(complete, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]))
        if not self._is_finished():
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            _write_json(self._settings_file, settings)
        return None

    def is_finished(self) -> bool:
        """Tell whether the run is finished, also when it was killed right after."""
        return agree(self._is_finished)

    def _is_finished(self) -> bool:
        return self._log_file.exists() and self.model.exists()

    def load(self, first: SelfDistillBiEncoder) -> tuple[SelfDistillBiEncoder, list[dict[str, Any]]]:
        """Read the encoder and the log of a finished run."""
        logger.info("the run in %s is finished: there is nothing to train", self.path)
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
        """Write the encoder and its history, and its adapter alone if it has one; return it with plain weights."""
        trained = encoder
        if adapters_of(trained.model):
            encoder = trained.merge_adapter()
        agree(lambda: self._save(trained, encoder, history, log))
        # for the other processes too, which have not saved it
        encoder.path = self.model
        encoder.name = str(self.model)
        return encoder

    def _save(
        self,
        trained: SelfDistillBiEncoder,
        encoder: SelfDistillBiEncoder,
        history: pd.DataFrame,
        log: Sequence[Mapping[str, Any]],
    ) -> None:
        if trained is not encoder:
            trained.save_adapter(self.adapter, overwrite=True)
        elif is_saved_encoder(self.adapter):
            shutil.rmtree(self.adapter)
        encoder.save(self.model, overwrite=True)
        with pt.io.finalized_open(str(self.path / "history.csv"), "t") as table:
            history.to_csv(table, index=False)
        with pt.io.finalized_open(str(self.path / "history.png"), "b") as drawing:
            plot_history(history).savefig(cast(IO[bytes], drawing), dpi=150, format="png")
        _write_json(self._log_file, log)

    def _require_ours(self) -> None:
        if not self.checkpoints.exists() or self._settings_file.exists():
            return
        found = sorted(path.name for path in self.checkpoints.iterdir() if not path.name.startswith("."))
        if found:
            raise FileExistsError(
                f"{str(self.checkpoints)!r} holds {found[:3]} and no {SETTINGS}, so no run of this package wrote it; "
                "choose another output_dir"
            )

    def _require_free(self, has_checkpoints: bool, resume: bool) -> None:
        # a run that saves the best checkpoints only has none if the start was best
        resumable = has_checkpoints or self._is_finished()
        if resume and self.model.exists() and not resumable:
            raise FileExistsError(
                f"{str(self.path)!r} holds a model but no checkpoint to resume from; load the model with "
                "pt.Artifact.load, or train another with overwrite=True"
            )
        if not resume and (self.model.exists() or resumable):
            raise FileExistsError(
                f"{str(self.path)!r} holds a run; go on with resume=True, replace it with overwrite=True, or choose "
                "another output_dir"
            )

    def _require_same_settings(self, settings: dict[str, Any]) -> None:
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

    def _remove_checkpoints(self) -> None:
        # the log first and the settings last: a run that is half removed is not finished, and still ours
        self._log_file.unlink(missing_ok=True)
        for path in self.checkpoints.glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self._settings_file:
                path.unlink()
        self._settings_file.unlink(missing_ok=True)


def is_over(state: TrainerState) -> bool:
    """Tell whether a run had taken its last step when it wrote a checkpoint with this state."""
    # read from a file, these are states and not callbacks
    states = cast(dict[str, Any], state.stateful_callbacks or {})
    control = states.get("TrainerControl", {}).get("args", {})
    return state.global_step >= state.max_steps or control.get("should_training_stop", False)


def _write_json(path: Path, content: Any) -> None:
    with pt.io.finalized_open(str(path), "b") as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


def _has_states_of_all_processes(checkpoint: Path) -> bool:
    processes = get_world_size()
    return processes == 1 or all((checkpoint / f"rng_state_{rank}.pth").exists() for rank in range(processes))
