"""Write the report of a study: a page in Markdown with tables and figures, from a template.

The template is written in Jinja. The methods of :class:`Report` and the figures (:mod:`~benchmarks.study.figures`) are
its functions; ``study`` and ``results`` are there too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure
from statsmodels.stats.multitest import multipletests

from . import figures
from .comparison import Difference, Results, System, collections_of
from .config import SETTINGS

MEASURES = ("nDCG@10", "RR@10", "R@100", "R@1000")
"""The measures of a table."""

NAMED = {"collection", "seed", "loss", "margin", "in_batch", "error", "detach_target", "transfer"}
"""Settings that a table shows anyhow, or does not have to."""

PLAIN = """# Results of the study {{ study.name }}

{{ results.records | length }} of {{ study.runs | length }} runs. Differences of nDCG@10 are to the untouched model.

{% for grid in study.grids %}{% for collection in collections(grid) %}
## {{ grid }}, {{ collection }}

{{ table(grid, collection, varying(grid)) }}

{% endfor %}{% endfor %}"""
"""The report of a study that has no template of its own."""


class Report:
    """A page with tables and figures.

    Args:
        results: The systems of the study.
        folder: The folder to write ``RESULTS.md`` and ``figures/`` to.
    """

    def __init__(self, results: Results, folder: Path) -> None:
        self.results = results
        self.folder = folder

    def write(self, template: str | Path | None = None) -> Path:
        """Write the page and its figures.

        Args:
            template: The page in Jinja, or None for tables of all grids.

        Returns:
            The page.
        """
        text = PLAIN
        if template is not None:
            text = Path(template).read_text()
        # strict, since a name that is misspelled would otherwise leave a hole in the page
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
        environment.filters |= {"thousands": "{:,}".format, "markdown": to_markdown}
        environment.globals.update(
            study=self.results.study,
            results=self.results,
            collections=self.collections,
            varying=self.varying,
            table=self.table,
            transfer_table=self.transfer_table,
            figure=self.figure,
            draw_by_triples=partial(figures.draw_by_triples, self.results),
            draw_by_seconds=partial(figures.draw_by_seconds, self.results),
            draw_by_margin=partial(figures.draw_by_margin, self.results),
            draw_distributions=figures.draw_distributions,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        page = self.folder / "RESULTS.md"
        page.write_text(environment.from_string(text).render())
        return page

    def collections(self, grid: str) -> list[str]:
        """Name the collections of a grid that have records."""
        return collections_of(self.results.grid(grid))

    def varying(self, grid: str) -> list[str]:
        """Name the settings that differ within a grid, without those that a table shows anyhow."""
        names = []
        for name in SETTINGS:
            values = {getattr(run, name) for run in self.results.study.grids[grid]}
            if name not in NAMED and len(values) > 1:
                names.append(name)
        return names

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
    ) -> str:
        """Make a table of a grid.

        Args:
            grid: The grid.
            collection: The collection that it is about.
            columns: Settings to show beside the loss.
            against: What each system is compared with; by default the untouched model.
            costs: Whether to show the seconds with those of the teacher.
            space: Whether to show how documents are spread, and the targets at the end.
            **settings: Which systems of the grid.

        Returns:
            A row a system, sorted by nDCG@10 on dev, best first: measures on test as means over seeds, the difference
            of nDCG@10 with its interval, and the p-value after Holm's correction within the table.

        Raises:
            KeyError: If there are no such systems.
        """
        systems = self.results.grid(grid, collection=collection, **settings)
        if not systems:
            raise KeyError(f"no records of the grid {grid!r} with {settings} on {collection}")
        systems.sort(key=attrgetter("dev"), reverse=True)
        against = against or self._untouched
        differences = [_difference(system, against(system)) for system in systems]
        rows = []
        for system, difference, p in zip(systems, differences, _corrected(differences), strict=True):
            row = _settings_of(system, columns) | _measures_of(system)
            row["difference"] = _optional(difference)
            row["p"] = p
            is_trained = system.run.loss != "untouched"
            row["training s"] = f"{system.training:.0f}" if is_trained else ""
            if costs:
                row["total s"] = f"{system.total:.0f}"
            if space:
                row |= _space_of(system)
            rows.append(row)
        return to_markdown(pd.DataFrame(rows))

    def transfer_table(self, grid: str, collection: str, others: Sequence[str]) -> str:
        """Make a table of nDCG@10 on collections that were not trained with, beside the one that was.

        Args:
            grid: The grid.
            collection: The collection of training.
            others: The other collections.

        Returns:
            A row a system, with the difference to the untouched model for each collection.
        """
        rows = []
        for system in self.results.grid(grid, collection=collection):
            before = self._untouched(system)
            is_trained = system.run.loss != "untouched"
            row = {"loss": system.run.loss_name}
            for where in system.records[0]["queries"]:
                if where.partition("/")[0] not in (collection, *others):
                    continue
                difference = system.better_than(before, where=where) if is_trained else None
                row[where] = f"{system.mean(where, 'nDCG@10'):.3f}"
                row[f"difference, {where}"] = _optional(difference)
            rows.append(row)
        return to_markdown(pd.DataFrame(rows))

    def figure(self, name: str, drawn: Figure) -> str:
        """Save a figure, and return what shows it in Markdown."""
        path = self.folder / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=110)
        return f"![{name}](figures/{name}.png)"

    def _untouched(self, system: System) -> System:
        return self.results.untouched(system.run)


def to_markdown(table: pd.DataFrame) -> str:
    """Write a table in Markdown.

    Example:
        >>> print(to_markdown(pd.DataFrame({"loss": ["InfoNCE"], "nDCG@10": [0.5]})))
        | loss | nDCG@10 |
        | --- | --- |
        | InfoNCE | 0.5 |
    """
    header = list(map(str, table.columns))
    rows = [header, ["---"] * len(header), *table.astype(str).to_numpy().tolist()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _difference(system: System, other: System) -> Difference | None:
    """Compare two systems on test, unless they are the same but for the other collections that were searched."""
    run = dataclasses.replace(system.run, transfer=())
    other_run = dataclasses.replace(other.run, transfer=())
    if run == other_run:
        return None
    return system.better_than(other)


def _corrected(differences: Sequence[Difference | None]) -> list[str]:
    """Correct the p-values of a table after Holm; empty where nothing was compared."""
    compared = [difference.p for difference in differences if difference is not None]
    if not compared:
        return [""] * len(differences)
    corrected = iter(multipletests(compared, method="holm")[1])
    column = []
    for difference in differences:
        if difference is None:
            column.append("")
        else:
            column.append(f"{next(corrected):.1g}")
    return column


def _settings_of(system: System, columns: Sequence[str]) -> dict[str, Any]:
    row = {"loss": system.run.loss_name}
    for column in columns:
        row[column.replace("_", " ")] = getattr(system.run, column)
    return row


def _measures_of(system: System) -> dict[str, Any]:
    row: dict[str, Any] = {"seeds": len(system.records)}
    for measure in MEASURES:
        row[measure] = f"{system.mean(system.test, measure):.3f}"
    row["seed sd"] = ""
    if len(system.records) > 1:
        row["seed sd"] = f"{system.deviation(system.test, 'nDCG@10'):.3f}"
    return row


def _space_of(system: System) -> dict[str, str]:
    target = ""
    if not math.isnan(system.final_target):
        target = f"{system.final_target:.2f}"
    return {
        "similarity": f"{system.space('similarity'):.2f}",
        "dimensions": f"{system.space('dimensions'):.0f}",
        "representational similarity": f"{system.space('representational_similarity'):.2f}",
        "target": target,
    }


def _optional(difference: Difference | None) -> str:
    """Write a difference; nothing where there is none."""
    return "" if difference is None else str(difference)
