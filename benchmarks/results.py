"""What the records of a study say: comparisons with confidence intervals, tables, figures, and the report.

The unit is a *system*: the runs that differ in nothing but the seed. Two systems are compared query by query, on the
values averaged over seeds: the p-value is of a paired t-test over queries, corrected after Holm within a table, and the
interval holds 95 % of 2,000 bootstrap samples of both queries and seeds, so it also says how much seeds matter.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from plan import Run, Study
from scipy import stats
from statsmodels.stats.multitest import multipletests

from pyterrier_selfdistill.training.similarity import COLLAPSE, FORGETTING

matplotlib.use("Agg")

MEASURES = ("nDCG@10", "RR@10", "R@100", "R@1000")
SAMPLES = 2000


class Difference(NamedTuple):
    """How much better one system is than another.

    Attributes:
        mean: The mean difference.
        low: Where the 95 % interval begins.
        high: Where it ends.
        p: The p-value of a paired t-test over queries.
    """

    mean: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


class System:
    """Runs that differ in nothing but the seed, and their records.

    Args:
        records: The records.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.records = sorted(records, key=lambda record: record["run"]["seed"])
        settings = {**records[0]["run"], "transfer": tuple(records[0]["run"]["transfer"])}
        self.run = Run(**settings)

    def values(self, where: str, measure: str) -> np.ndarray:
        """Returns the measure of each query, of shape ``(seeds, queries)``."""
        return np.array([record["queries"][where][measure] for record in self.records])

    def mean(self, where: str, measure: str) -> float:
        """Returns the mean over queries and seeds."""
        return float(np.mean([record["means"][where][measure] for record in self.records]))

    def deviation(self, where: str, measure: str) -> float:
        """Returns the standard deviation over seeds."""
        return float(np.std([record["means"][where][measure] for record in self.records]))

    def cost(self, name: str) -> float:
        """Returns the mean of a cost over seeds."""
        return float(np.mean([record["cost"].get(name, 0.0) for record in self.records]))

    @property
    def training(self) -> float:
        """The seconds of training, mean over seeds."""
        return self.cost("training_seconds")

    @property
    def total(self) -> float:
        """The seconds of training, those of the teacher and its labels included."""
        return sum(map(self.cost, ("training_seconds", "teacher_seconds", "labelling_seconds")))

    @property
    def agreement(self) -> float:
        """The share of triples whose positive the teacher scores above the negative."""
        return float(np.mean([record["training"]["teacher_agreement"] for record in self.records]))

    @property
    def final_target(self) -> float:
        """The mean target in the last tenth of the steps that were kept; NaN for losses without."""
        kept = [np.array(record["training"]["history"]["target"], dtype=float) for record in self.records]
        return float(np.mean([targets[-max(1, len(targets) // 10) :] for targets in kept]))

    @property
    def dev(self) -> float:
        """Mean nDCG@10 on dev, by which systems are chosen."""
        return self.mean(f"{self.run.collection}/dev", "nDCG@10")

    @property
    def test(self) -> str:
        """The split that the study is about."""
        return f"{self.run.collection}/test"

    def better_than(self, other: System, measure: str = "nDCG@10", where: str | None = None) -> Difference:
        """Compares with another system."""
        where = where or self.test
        return compare(self.values(where, measure), other.values(where, measure))


def compare(one: np.ndarray, other: np.ndarray) -> Difference:
    """Compares measures of shape ``(seeds, queries)``."""
    generator = np.random.default_rng(0)
    difference = one.mean(axis=0) - other.mean(axis=0)
    queries = generator.integers(len(difference), size=(SAMPLES, len(difference)))

    def resampled(values: np.ndarray) -> np.ndarray:
        seeds = generator.integers(len(values), size=(SAMPLES, len(values)))
        weights = np.stack([(seeds == seed).mean(axis=1) for seed in range(len(values))], axis=1)
        means = np.stack([row[queries].mean(axis=1) for row in values], axis=1)
        return (weights * means).sum(axis=1)

    low, high = np.quantile(resampled(one) - resampled(other), [0.025, 0.975])
    p = float(stats.ttest_1samp(difference, 0).pvalue) if difference.any() else 1.0
    return Difference(float(difference.mean()), float(low), float(high), p)


class Results:
    """The records of a study.

    Args:
        study: The study.
        records: Their folder.

    Raises:
        FileNotFoundError: If there are none.
    """

    def __init__(self, study: Study, records: Path) -> None:
        self.study = study
        self.found: dict[str, dict[str, Any]] = {}
        for run in study.runs:
            path = records / f"{run.key}.json"
            if path.exists():
                self.found[run.key] = json.loads(path.read_text())
        if not self.found:
            raise FileNotFoundError(f"{str(records)!r} has no records of {study.name!r}; run the study first")

    @cached_property
    def all(self) -> list[System]:
        """All systems."""
        return self._systems(self.study.runs)

    def grid(self, name: str, **settings: Any) -> list[System]:
        """Returns the systems of a grid, those with the given settings."""
        return [s for s in self._systems(self.study.grids[name]) if _has(s.run, settings)]

    def one(self, grid: str, **settings: Any) -> System:
        """Returns the only system of a grid with the given settings.

        Raises:
            KeyError: If there is none, or more than one.
        """
        found = self.grid(grid, **settings)
        if len(found) != 1:
            raise KeyError(f"{len(found)} systems of {grid!r} have {settings}")
        return found[0]

    def untouched(self, run: Run) -> System:
        """Returns the model as it was before a run."""
        names = ("collection", "model", "pooling", "query_length", "document_length")
        found = [s for s in self.all if s.run.loss == "untouched" and _has(s.run, {n: getattr(run, n) for n in names})]
        if not found:
            raise KeyError(f"no record of the untouched model of {run}")
        return max(found, key=lambda system: len(system.run.transfer))

    def best_static(self, **settings: Any) -> System:
        """Returns the static margin that is best on dev."""
        found = [system for system in self.all if system.run.loss == "static" and _has(system.run, settings)]
        return max(found, key=lambda system: system.dev)

    def cheapest(self, grid: str, quality: float, **settings: Any) -> System | None:
        """Returns the system of a grid that reaches an nDCG@10 on dev at the lowest total cost, if any does."""
        found = [system for system in self.grid(grid, **settings) if system.dev >= quality]
        return min(found, key=lambda system: system.total, default=None)

    def plain(self, system: System) -> System:
        """Returns the system with l2 and the gradient through the target, in all else the same."""
        return self._changed(system, error="l2", detach_target=False)

    def random(self, system: System) -> System:
        """Returns the system with random negatives, in all else the same."""
        return self._changed(system, negatives="random")

    def infonce(self, system: System) -> System:
        """Returns InfoNCE with the settings of a system."""
        return self._changed(system, loss="infonce", margin=None, in_batch=False, error="l2", detach_target=False)

    @property
    def open(self) -> dict[str, int]:
        """How many runs of a grid have no record, by grid."""
        counts = {name: sum(run.key not in self.found for run in grid) for name, grid in self.study.grids.items()}
        return {name: count for name, count in counts.items() if count}

    def alarms(self) -> pd.DataFrame:
        """Counts the runs in which a warning of the trainer is due, and those of them that training harmed.

        Returns:
            A row a warning, and one for runs with neither: ``runs`` in which it was measured, those in which it is
            due, and how many of these training harmed: they lost more than 0.01 of nDCG@10.
        """
        rows = []
        for system in self.all:
            if system.run.loss == "untouched":
                continue
            before = self.untouched(system.run)
            for record in system.records:
                left = (1 - record["space"]["similarity"]) / (1 - before.records[0]["space"]["similarity"])
                change = record["means"][system.test]["nDCG@10"] - before.mean(system.test, "nDCG@10")
                rows.append((change < -0.01, left < COLLAPSE, record["space"].get("kept", np.nan)))
        harmed, alike, kept = (np.array(column) for column in zip(*rows, strict=True))
        forgets, measured = kept < FORGETTING, ~np.isnan(kept)
        counts = {
            "documents become alike": (np.ones_like(alike), alike),
            "the encoder forgets": (measured, forgets),
            "neither": (measured, measured & ~alike & ~forgets),
        }
        return pd.DataFrame(
            [
                {"warning": name, "runs": runs.sum(), "due in": due.sum(), "of these harmed": (due & harmed).sum()}
                for name, (runs, due) in counts.items()
            ]
        )

    def machine(self) -> str:
        """Says where the records are from."""
        kinds = {
            f"{m['processor']}, {m['cores']} cores, {m['gpu'] or 'no GPU'}, {m['precision']}"
            for m in (record["machine"] for record in self.found.values())
        }
        return "; ".join(sorted(kinds))

    def _changed(self, system: System, **changes: Any) -> System:
        """Returns the system that differs in these settings, with the seeds of this one where it has them."""
        wanted = dataclasses.replace(system.run, **changes, seed=0)
        seeds = [record["run"]["seed"] for record in system.records]
        for other in self.all:
            if dataclasses.replace(other.run, seed=0) == wanted:
                same = [record for record in other.records if record["run"]["seed"] in seeds]
                return System(same or other.records)
        raise KeyError(f"no record of {wanted}")

    def _systems(self, runs: Sequence[Run]) -> list[System]:
        grouped: dict[Run, list[dict[str, Any]]] = {}
        for run in runs:
            if run.key in self.found:
                grouped.setdefault(dataclasses.replace(run, seed=0), []).append(self.found[run.key])
        return [System(records) for records in grouped.values()]

    def table(
        self,
        grid: str,
        collection: str,
        columns: Sequence[str] = (),
        *,
        against: Callable[[System], System] | None = None,
        costs: bool = False,
        space: bool = False,
        **settings: Any,
    ) -> pd.DataFrame:
        """Makes a table of a grid.

        Args:
            grid: The grid.
            collection: The collection that it is about.
            columns: Settings to show beside the method.
            against: What each system is compared with; by default the untouched model.
            costs: Whether to show the seconds with those of the teacher.
            space: Whether to show how documents are spread, and the targets at the end.
            **settings: Which systems of the grid.

        Returns:
            A row a system, sorted by nDCG@10 on dev, best first: measures on test as means over seeds, the difference
            of nDCG@10 with its interval, and the p-value after Holm's correction.
        """
        where = f"{collection}/test"
        systems = self.grid(grid, collection=collection, **settings)
        systems.sort(key=lambda system: -system.dev)
        rows, differences = [], []
        for system in systems:
            other = (against or (lambda system: self.untouched(system.run)))(system)
            difference = system.better_than(other, where=where)
            differences.append(difference)
            trained = system.run.loss != "untouched"
            same = dataclasses.replace(system.run, transfer=()) == dataclasses.replace(other.run, transfer=())
            rows.append(
                {
                    "loss": system.run.method,
                    **{column.replace("_", " "): getattr(system.run, column) for column in columns},
                    "seeds": len(system.records),
                    **{measure: f"{system.mean(where, measure):.3f}" for measure in MEASURES},
                    "seed sd": f"{system.deviation(where, 'nDCG@10'):.3f}" if len(system.records) > 1 else "",
                    "difference": "" if same else str(difference),
                    "training s": f"{system.training:.0f}" if trained else "",
                    **({"total s": f"{system.total:.0f}"} if costs else {}),
                    **(_space(system) if space else {}),
                }
            )
        if not rows:
            raise KeyError(f"no records of the grid {grid!r} with {settings} on {collection}")
        compared = [i for i, row in enumerate(rows) if row["difference"]]
        corrected = multipletests([differences[i].p for i in compared], method="holm")[1] if compared else []
        table = pd.DataFrame(rows)
        table.insert(table.columns.get_loc("difference") + 1, "p", "")
        for i, p in zip(compared, corrected, strict=True):
            table.loc[i, "p"] = f"{p:.1g}"
        return table


def _space(system: System) -> dict[str, str]:
    spaces = [record["space"] for record in system.records]
    return {
        "similarity": f"{np.mean([space['similarity'] for space in spaces]):.2f}",
        "dimensions": f"{np.mean([space['dimensions'] for space in spaces]):.0f}",
        "kept": f"{np.mean([space.get('kept', np.nan) for space in spaces]):.2f}",
        "target": "" if np.isnan(system.final_target) else f"{system.final_target:.2f}",
    }


def _has(run: Run, settings: dict[str, Any]) -> bool:
    """Whether a run has the settings, or one of several values of a setting."""
    return all(getattr(run, k) in v if isinstance(v, list) else getattr(run, k) == v for k, v in settings.items())


def markdown(table: pd.DataFrame) -> str:
    """Writes a table in Markdown."""
    rows = [list(map(str, table.columns)), ["---"] * table.shape[1], *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# --- figures --------------------------------------------------------------------------------------------------------


def draw_by(results: Results, grid: str, x: Callable[[System], float], label: str) -> Figure:
    """Draws nDCG@10 of the systems of a grid against something, a panel a collection and a line a method."""
    systems = [system for system in results.grid(grid) if system.run.loss != "untouched"]
    collections = list(dict.fromkeys(system.run.collection for system in systems))
    figure = Figure(figsize=(5 * len(collections), 3.5), layout="constrained")
    for axes, collection in zip(figure.subplots(1, len(collections), squeeze=False)[0], collections, strict=True):
        ours = [system for system in systems if system.run.collection == collection]
        for method in dict.fromkeys(system.run.method for system in ours):
            points = sorted((x(s), s.mean(s.test, "nDCG@10")) for s in ours if s.run.method == method)
            axes.plot(*zip(*points, strict=True), marker="o", label=method)
        before = results.untouched(ours[0].run)
        axes.axhline(before.mean(before.test, "nDCG@10"), color="grey", linestyle=":", label="untouched")
        axes.set(title=collection, xlabel=label, ylabel="nDCG@10", xscale="log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def draw_margins(results: Results, grid: str) -> Figure:
    """Draws nDCG@10 against the static margin, with the parameter-free losses of the same settings as lines."""
    static = [system for system in results.grid(grid) if system.run.loss == "static"]
    collections = list(dict.fromkeys(system.run.collection for system in static))
    figure = Figure(figsize=(5 * len(collections), 3.5), layout="constrained")
    for axes, collection in zip(figure.subplots(1, len(collections), squeeze=False)[0], collections, strict=True):
        for in_batch in (False, True):
            chosen = [s for s in static if s.run.collection == collection and s.run.in_batch == in_batch]
            points = sorted((s.run.margin, s.mean(s.test, "nDCG@10")) for s in chosen)
            if points:
                name = "static, in-batch" if in_batch else "static"
                axes.plot(*zip(*points, strict=True), marker="o", label=name)
        free = [s for s in results.grid(grid) if s.run.loss in ("adaptive", "distributed")]
        for color, system in enumerate(s for s in free if s.run.collection == collection):
            axes.axhline(
                system.mean(system.test, "nDCG@10"), color=f"C{color + 2}", linestyle="--", label=system.run.method
            )
        axes.set(title=collection, xlabel="static margin", ylabel="nDCG@10")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def draw_distributions(systems: Sequence[System]) -> Figure:
    """Draws medians, quartiles and 5 % and 95 % quantiles of margins and targets while training."""
    systems = [system for system in systems if system.records[0]["training"].get("distributions")]
    figure = Figure(figsize=(4 * max(len(systems), 1), 3.5), layout="constrained")
    panels = figure.subplots(1, len(systems), squeeze=False, sharey=True)[0] if systems else []
    for axes, system in zip(panels, systems, strict=True):
        distributions = system.records[0]["training"]["distributions"]
        steps = [int(step) for step in distributions]
        for color, name in enumerate(("target", "margin")):
            quantiles = np.array([row[name] for row in distributions.values()])
            axes.plot(steps, quantiles[:, 2], color=f"C{color}", label=name)
            axes.fill_between(steps, quantiles[:, 1], quantiles[:, 3], color=f"C{color}", alpha=0.3, linewidth=0)
            axes.fill_between(steps, quantiles[:, 0], quantiles[:, 4], color=f"C{color}", alpha=0.15, linewidth=0)
        axes.set(title=f"{system.run.method}\n{system.run.collection}", xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


# --- the report -----------------------------------------------------------------------------------------------------

PLAIN = """# Results of the study {{ study.name }}

{{ results.found | length }} of {{ study.runs | length }} runs. Differences of nDCG@10 are to the untouched model.

{% for grid in study.grids %}{% for collection in collections(grid) %}
## {{ grid }}, {{ collection }}

{{ table(grid, collection, varying(grid)) }}

{% endfor %}{% endfor %}"""
"""The report of a study that has no template of its own."""


def write_report(study: Study, records: Path, target: Path, template: str | None) -> None:
    """Writes ``RESULTS.md`` with its tables (Markdown, CSV and LaTeX) and figures.

    Args:
        study: The study.
        records: The folder of the records.
        target: The folder to write to.
        template: The report in Jinja, or None for tables of all grids.
    """
    results = Results(study, records)
    tables, figures = target / "tables", target / "figures"
    for folder in (tables, figures):
        folder.mkdir(parents=True, exist_ok=True)

    def table(grid: str, collection: str, columns: Sequence[str] = (), name: str | None = None, **options: Any) -> str:
        made = results.table(grid, collection, columns, **options)
        stem = name or f"{grid}-{collection}"
        made.to_csv(tables / f"{stem}.csv", index=False)
        (tables / f"{stem}.tex").write_text(made.to_latex(index=False, escape=True))
        (tables / f"{stem}.md").write_text(markdown(made) + "\n")
        return markdown(made)

    def figure(name: str, drawn: Figure) -> str:
        drawn.savefig(figures / f"{name}.png", dpi=110)
        return f"![{name}](figures/{name}.png)"

    def transferred(grid: str, collection: str, others: Sequence[str]) -> str:
        """Tables nDCG@10 where it was not trained, with the difference to the untouched model."""
        rows = []
        for system in results.grid(grid, collection=collection):
            before = results.untouched(system.run)
            row = {"loss": system.run.method}
            for where in [
                name for name in system.records[0]["queries"] if name.partition("/")[0] in (collection, *others)
            ]:
                row[where] = f"{system.mean(where, 'nDCG@10'):.3f}"
                row[f"difference, {where}"] = (
                    str(system.better_than(before, where=where)) if system.run.loss != "untouched" else ""
                )
            rows.append(row)
        return markdown(pd.DataFrame(rows))

    def varying(grid: str) -> list[str]:
        shown = [f.name for f in dataclasses.fields(Run)]
        hidden = {"collection", "seed", "loss", "margin", "in_batch", "error", "detach_target", "transfer"}
        values = {name: {getattr(run, name) for run in study.grids[grid]} for name in shown if name not in hidden}
        return [name for name, different in values.items() if len(different) > 1]

    def collections(grid: str) -> list[str]:
        return list(dict.fromkeys(system.run.collection for system in results.grid(grid)))

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    environment.filters |= {"thousands": "{:,}".format, "markdown": markdown}
    environment.globals.update(
        study=study,
        results=results,
        table=table,
        figure=figure,
        varying=varying,
        collections=collections,
        draw_by=lambda *args, **options: draw_by(results, *args, **options),
        draw_margins=lambda grid: draw_margins(results, grid),
        draw_distributions=draw_distributions,
        x_triples=lambda system: system.run.triples,
        x_seconds=lambda system: system.total,
        transferred=transferred,
    )
    text = Path(template).read_text() if template else PLAIN
    (target / "RESULTS.md").write_text(environment.from_string(text).render())
