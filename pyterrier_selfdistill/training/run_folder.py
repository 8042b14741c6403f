"""The folder of a run (model and checkpoints), and the history of a run as a frame, a plot and a summary."""

from __future__ import annotations

import itertools
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any, cast

import pandas as pd
import pyterrier as pt
from matplotlib.figure import Figure
from sentence_transformers.util import get_world_size

from ..encoder.biencoder import SelfDistillBiEncoder
from ..encoder.storage import saved_files
from ..utils.folders import files_of_others, portable_settings, read_json, require_free

logger = logging.getLogger(__name__)

# transformers writes this file of a checkpoint last, so a checkpoint without it is incomplete
TRAINER_STATE = "trainer_state.json"
SETTINGS = "settings.json"  # the settings of the run, written before its first checkpoint
LOG = "log.json"  # the log of a finished run, written last
TEMPORARY = re.compile(r"\..*\.tmp.*")
WRITTEN = re.compile(rf"{TEMPORARY.pattern}|{SETTINGS}|{LOG}|checkpoint-\d+|mined-\d+\.parquet|runs|eval")

# training arguments that may change when a run is resumed: for data loading and reporting
HARMLESS_ARGUMENTS = {
    *("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory"),
    *("dataloader_prefetch_factor", "ddp_backend", "ddp_timeout", "disable_tqdm", "hub_always_push"),
    *("hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy", "hub_token"),
    *("include_num_input_tokens_seen", "log_level", "log_level_replica", "log_on_each_node"),
    *("logging_first_step", "logging_steps", "logging_strategy", "project", "push_to_hub", "report_to"),
    *("run_name", "skip_memory_metrics", "trackio_space_id"),
}


class RunFolder:
    """The output folder of a run, which is created when a run claims it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / "model"
        self.adapter = self.path / "adapter"
        self.checkpoints = self.path / "checkpoints"
        self._settings_file = self.checkpoints / SETTINGS
        self._log_file = self.checkpoints / LOG

    def require_free(self, *, resume: bool, overwrite: bool) -> None:
        """Check that a run may use the folder: it must be new, unless the run resumes or overwrites."""
        if self.checkpoints.exists() and (overwrite or not self._settings_file.exists()):
            own = WRITTEN if self._settings_file.exists() else TEMPORARY
            found = sorted(path.name for path in self.checkpoints.iterdir() if not own.fullmatch(path.name))
            if found:
                raise FileExistsError(
                    f"{str(self.checkpoints)!r} holds {found[:3]}, which do not belong to a training run with a "
                    f"{SETTINGS}; move these elsewhere, or choose another output_dir"
                )
        if overwrite:
            for folder in (self.model, self.adapter):
                require_free(folder, True, saved_files)
            return
        # a run that saves only its best checkpoints has none if the start was best
        resumable = self._is_resumable()
        if resume and self.model.exists() and not resumable:
            raise FileExistsError(
                f"{str(self.path)!r} holds a model but no checkpoint to resume from; load the model with "
                "pt.Artifact.load, or train another with overwrite=True"
            )
        if not resume and (self.model.exists() or resumable):
            raise FileExistsError(
                f"{str(self.path)!r} holds a run; set resume=True to continue it or overwrite=True to replace it, or "
                "choose another output_dir"
            )

    def claim(self, settings: Mapping[str, Any], *, overwrite: bool) -> Path | None:
        """Claim the folder for a run with these settings, and return the checkpoint to resume from, if any."""
        arguments = {name: value for name, value in settings["arguments"].items() if name not in HARMLESS_ARGUMENTS}
        decisive = {"arguments": arguments, "data": settings["data"]["fingerprint"]}
        decisive["base_model"] = settings["base_model"]["checksum"]
        settings = portable_settings({**settings, **decisive})
        if overwrite:
            self._remove_checkpoints()
        elif self._is_resumable():
            self._require_same_run(settings)
        complete = self._complete_checkpoints()
        if (processes := get_world_size()) > 1:
            states = [f"rng_state_{rank}.pth" for rank in range(processes)]
            complete = [path for path in complete if all((path / name).exists() for name in states)]
        for checkpoint in set(self.checkpoints.glob("checkpoint-*")) - set(complete):
            shutil.rmtree(checkpoint)
        for left in [*self.path.glob(".*.tmp*"), *self.checkpoints.glob(".*.tmp*")]:
            left.unlink()
        if complete:
            return max(complete, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]))
        if not self.is_finished():
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            _write_json(self._settings_file, settings)
        return None

    def _complete_checkpoints(self) -> list[Path]:
        return [state.parent for state in self.checkpoints.glob(f"checkpoint-*/{TRAINER_STATE}") if _is_json(state)]

    def _is_resumable(self) -> bool:
        return bool(self._complete_checkpoints()) or self.is_finished()

    def scale(self) -> float | None:
        """Read the scale that an earlier run in the folder measured, if any."""
        if not self._settings_file.exists():
            return None
        return read_json(self._settings_file, loss=dict[str, Any])["loss"].get("scale")

    def is_finished(self) -> bool:
        """Tell whether the run is finished, even if it was killed right afterwards."""
        return self._log_file.exists() and self.model.exists()

    def _remove_checkpoints(self) -> None:
        # the log first and the settings last, so that a half removed run is unfinished but still ours
        self._log_file.unlink(missing_ok=True)
        for path in self.checkpoints.glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self._settings_file:
                path.unlink()
        self._settings_file.unlink(missing_ok=True)

    def _require_same_run(self, settings: Mapping[str, Any]) -> None:
        earlier = read_json(self._settings_file)
        changed = [name for name in settings.keys() | earlier.keys() if earlier.get(name) != settings.get(name)]
        if changed:
            changes = [f"{name} was {earlier.get(name)} and is {settings.get(name)}" for name in sorted(changed)]
            raise ValueError(
                f"resume=True, but the run in {str(self.path)!r} had other settings: {'; '.join(changes)}. Set them "
                "back, or begin anew with overwrite=True"
            )

    def load(self, first: SelfDistillBiEncoder) -> tuple[SelfDistillBiEncoder, list[dict[str, Any]]]:
        """Read the encoder and the log of a finished run."""
        logger.info("the run in %s is already finished", self.path)
        encoder = first.apply_attributes(model=self.model, device=first.device)
        return encoder, read_json(self._log_file, list[dict[str, Any]])

    def save(
        self, encoder: SelfDistillBiEncoder, adapted: SelfDistillBiEncoder | None, history: pd.DataFrame, log: list[Any]
    ) -> None:
        """Write the encoder, its history, and the adapter if there is one."""
        if adapted is not None:
            adapted.save_adapter(self.adapter, overwrite=True)
        elif self.adapter.exists() and not files_of_others(self.adapter, saved_files(self.adapter)):
            shutil.rmtree(self.adapter)
        encoder.save(self.model, overwrite=True)
        with pt.io.finalized_open(str(self.path / "history.csv"), "t") as table:
            history.to_csv(table, index=False)
        with pt.io.finalized_open(str(self.path / "history.png"), "b") as drawing:
            plot_history(history).savefig(cast(IO[bytes], drawing), dpi=150, format="png")
        _write_json(self._log_file, log)


def _write_json(path: Path, content: Any) -> None:
    with pt.io.finalized_open(str(path), "b") as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


# --- history ----------------------------------------------------------------------------------------------------------

# the columns of a history other than measures
PROGRESS = ["step", "epoch", "loss", "margin", "target", "learning_rate", "similarity", "representational_similarity"]

FEW_POINTS = 20  # lines with fewer points get markers


def history_frame(logs: Iterable[Mapping[str, Any]], measures: Iterable[str] = ()) -> pd.DataFrame:
    """Make a frame from a trainer's log, with one row per logged step."""
    logs, measures = list(logs), list(measures)
    columns = {name: name for name in PROGRESS} | {f"eval_{name}": name for name in measures}
    for measure, log in itertools.product(measures, logs):
        of_data_sets = [name for name in log if name.startswith(f"eval_{measure} (")]
        columns |= {name: name.removeprefix("eval_") for name in of_data_sets}
    rows: dict[int, dict[str, Any]] = {}
    for log in logs:
        known = {columns[key]: value for key, value in log.items() if key in columns}
        if known.keys() - {"step", "epoch"}:
            rows.setdefault(log["step"], {}).update(known)
    return pd.DataFrame([rows[step] for step in sorted(rows)], columns=list(columns.values()))


def milestones(history: pd.DataFrame) -> list[dict[str, Any]]:
    """Select the rows with measures, or else the last row with a loss, for the summary of a model."""
    measures = [name for name in history if name not in PROGRESS]
    rows = history[history[measures].notna().any(axis=1)]
    if rows.empty:
        # the last row may have the similarity of documents but no loss
        rows = history.dropna(subset="loss").tail(1)
    records = rows[["step", "loss", "margin", "target", *measures]].to_dict(orient="records")
    return [{str(name): value for name, value in row.items() if pd.notna(value)} for row in records]


def plot_history(history: pd.DataFrame) -> Figure:
    """Plot the loss, the margin with its target, and the first measure, if they were logged."""
    measures = [name for name in history if name not in PROGRESS]
    logged = {name for name in history if history[name].notna().any()}
    margin = "Margin against target" if "target" in logged else "Margin"  # a softmax loss has no target
    lines = {"Loss": ["loss"], margin: ["margin", "target"], "Evaluation": measures[:1]}
    panels = {title: [name for name in names if name in logged] for title, names in lines.items()}
    panels = {title: names for title, names in panels.items() if names}
    figure = _HistoryFigure(figsize=(4 * max(len(panels), 1), 3), layout="constrained")
    for position, (title, columns) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), position, title=title, xlabel="step")
        for column in columns:
            values = history[["step", column]].dropna()
            axes.plot("step", column, data=values, label=column, marker="o" if len(values) < FEW_POINTS else None)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


class _HistoryFigure(Figure):
    """A figure that notebooks display without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def warn_if_not_improved(history: pd.DataFrame, metric: str, greater_is_better: bool, keeps_start: bool) -> None:
    """Warn if no evaluation is better than the one before training."""
    values = history.set_index("step")[metric].dropna()
    if 0 not in values.index or len(values) < 2:
        return
    before, after = values.iloc[0], values.iloc[1:]
    step = after.idxmax() if greater_is_better else after.idxmin()
    if after[step] > before if greater_is_better else after[step] < before:
        return
    result = "the encoder of the last step, since load_best_model_at_end=False"
    if keeps_start:
        result = "the encoder that training started from"
    change = f"worse by {abs(after[step] - before):.4f}"
    if after[step] == before:
        change = "equal (the earlier of equal encoders counts as best)"
    logger.warning(
        "training did not improve %s on the validation queries: it was %.4f before training and at best %.4f "
        "afterwards, in step %d, which is %s. The result is %s. Try a lower learning_rate, another target, harder "
        "negatives (a retriever before the trainer) or more data",
        *(metric, before, after[step], step, change, result),
    )
