"""Write the report of a study: a page in Markdown with tables and figures, from a template.

The template is written in Jinja. The methods of :class:`Report`, the figures (:mod:`.figures`),
``folded`` and ``link`` (:mod:`.markdown`) are its functions; ``study`` and ``results`` are there too.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from . import figures
from .comparison import Results, System, collections_of
from .config import describe_start, varying
from .markdown import broken_links, folded, link, to_markdown
from .range_test import range_test
from .records import Record
from .significance import EQUIVALENCE_BOUND, NON_INFERIORITY_BOUND, Claim, Claims, Difference, holm

MEASURES = ("nDCG@10", "RR@10", "R@100", "R@1000")
"""The measures of a table."""

NAMED = {"collection", "seed", "loss", "margin", "scale", "in_batch", "error", "detach_target", "transfer"}
"""Settings that a table shows anyhow, or does not have to."""

CLAIMS = {
    "difference": "different",
    "equivalence": f"equivalent, within {EQUIVALENCE_BOUND}",
    "non-inferiority": f"not behind by {NON_INFERIORITY_BOUND}",
}
"""How a table says what is claimed of two systems."""

DEFAULT = importlib.resources.files(__package__) / "report.md.j2"
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
            template: The page in Jinja, or None for :data:`DEFAULT`.

        Returns:
            The page.

        Raises:
            ValueError: If the page links to a section that it does not have.
        """
        text = DEFAULT.read_text(encoding="utf-8")
        if template is not None:
            text = Path(template).read_text(encoding="utf-8")
        # strict, since a name that is misspelled would otherwise leave a hole in the page
        environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined,
            keep_trailing_newline=True,
            trim_blocks=True,
            extensions=["jinja2.ext.do"],  # to append to a list
        )
        environment.filters |= {"thousands": "{:,}".format, "markdown": to_markdown}
        environment.globals.update(
            study=self.results.study,
            results=self.results,
            collections=self.collections,
            varying=self.varying,
            describe_start=describe_start,
            table=self.table,
            best_table=self.best_table,
            cost_table=self.cost_table,
            transfer_table=self.transfer_table,
            search_table=self.search_table,
            claims=self.claims,
            claims_table=self.claims_table,
            folded=folded,
            link=link,
            figure=self.figure,
            draw_by_triples=partial(figures.draw_by_triples, self.results),
            draw_by_seconds=partial(figures.draw_by_seconds, self.results),
            draw_by_margin=partial(figures.draw_by_margin, self.results),
            draw_distributions=figures.draw_distributions,
            draw_differences=figures.draw_differences,
            range_test=range_test,
        )
        rendered = environment.from_string(text).render()
        rendered = re.sub(r"\n{3,}", "\n\n", rendered)  # what loops leave between their turns
        broken = broken_links(rendered)
        if broken:
            raise ValueError(f"the page links to sections that it does not have: {broken}; name them as their headings")
        self.folder.mkdir(parents=True, exist_ok=True)
        page = self.folder / "RESULTS.md"
        page.write_text(rendered)
        return page

    def collections(self, grid: str) -> list[str]:
        """Name the collections of a grid that have records."""
        return collections_of(self.results.grid(grid))

    def varying(self, grid: str) -> list[str]:
        """Name the settings that differ within a grid, without those that a table shows anyhow."""
        return [name for name in varying(self.results.study.grids[grid]) if name not in NAMED]

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
            against: What each system is compared with; by default the untouched model, if it has a record.
            costs: Whether to show the seconds with those of the teacher.
            space: Whether to show how documents are spread, and the targets at the end.
            **settings: Which systems of the grid.

        Returns:
            A row a system, sorted by nDCG@10 on dev, best first: measures on test as means over seeds, the difference
            of nDCG@10 with its interval, and the p-value after Holm's correction within the table. Where systems were
            searched on dev only, what :meth:`search_table` makes.

        Raises:
            KeyError: If there are no such systems.
        """
        systems = self.results.grid(grid, collection=collection, **settings)
        if not systems:
            raise KeyError(f"no records of the grid {grid!r} with {settings} on {collection}")
        tested = [system for system in systems if system.is_tested]
        if not tested:
            return self.search_table(grid, collection, columns, **settings)
        systems = sorted(tested, key=attrgetter("dev"), reverse=True)
        rows = self._rows(systems, columns, against or self._untouched)
        for row, system in zip(rows, systems, strict=True):
            if costs:
                row["total s"] = f"{system.total:.0f}"
            if space:
                row.update(_space_of(system))
        return to_markdown(pd.DataFrame(rows))

    def best_table(self, collection: str) -> str:
        """Make a table of the best system of each loss and encoder (:meth:`.comparison.Results.best`).

        Args:
            collection: The collection.

        Returns:
            A row a system, best on dev first, as :meth:`table` has them, with the settings that differ among them.
        """
        systems = self.results.best(collection)
        runs = [system.run for system in systems]
        columns = [name for name in varying(runs) if name not in NAMED]
        return to_markdown(pd.DataFrame(self._rows(systems, columns, self._untouched)))

    def cost_table(self) -> str:
        """Make a table of what the grids took.

        Returns:
            A row a grid, and one for all: the number of records, the seconds of training and of all, and the
            most memory of a run. What several grids share counts once, in the first of them.
        """
        parts: dict[str, list[Record]] = {}
        for run, grid in self.results.study.grid_of.items():
            if run.key in self.results.records:
                parts.setdefault(grid, []).append(self.results.records[run.key])
        rows = [_cost_of(grid, records) for grid, records in parts.items()]
        rows.append(_cost_of("all", list(self.results.records.values())))
        return to_markdown(pd.DataFrame(rows))

    def _rows(
        self, systems: Sequence[System], columns: Sequence[str], against: Callable[[System], System | None]
    ) -> list[dict[str, Any]]:
        """Make the rows of a table, with p-values that are corrected over them."""
        differences = [_difference(system, against(system)) for system in systems]
        rows = []
        for system, difference, p in zip(systems, differences, _corrected(differences), strict=True):
            row = _settings_of(system, columns) | _measures_of(system)
            row["difference"] = _optional(difference)
            row["p"] = p
            row["training s"] = _training_of(system)
            rows.append(row)
        return rows

    def search_table(self, grid: str, collection: str, columns: Sequence[str], **settings: Any) -> str:
        """Make a table of a grid in which settings were searched, on dev.

        Args:
            grid: The grid.
            collection: The collection that it is about.
            columns: The settings to show beside the loss.
            **settings: Which systems of the grid.

        Returns:
            A row a system, best first.
        """
        systems = self.results.grid(grid, collection=collection, **settings)
        rows = []
        for system in sorted(systems, key=attrgetter("dev"), reverse=True):
            row = _settings_of(system, columns)
            row["seeds"] = len(system.records)
            row["nDCG@10 on dev"] = f"{system.dev:.3f}"
            row["training s"] = _training_of(system)
            rows.append(row)
        return to_markdown(pd.DataFrame(rows))

    def claims(self, rows: Sequence[tuple[str, System, System, str]], measure: str = "nDCG@10") -> Claims:
        """Test all claims of a section, and correct them together.

        Args:
            rows: For each claim a label, the system that it is about, the one it is compared with, and the kind
                (:data:`.significance.KINDS`).
            measure: The measure, on test.

        Returns:
            The claims, with ``verdicts(label)`` and ``difference(label)`` for sentences; :meth:`claims_table` shows
            them.
        """
        claims = []
        for label, system, other, kind in rows:
            claims.append(Claim(label, system.better_than(other, measure), kind))
        return Claims(claims)

    def claims_table(self, claims: Claims) -> str:
        """Make a table of the claims of a section.

        Args:
            claims: The claims.

        Returns:
            A row a pair of systems, with a p-value for each kind of claim, corrected over all claims of the section.
        """
        rows: dict[str, dict[str, str]] = {}
        for claim, p in zip(claims.claims, claims.p, strict=True):
            row = rows.setdefault(claim.label, {"systems": claim.label, "difference": str(claim.difference)})
            row[f"p, {CLAIMS[claim.kind]}"] = f"{p:.1g}"
        table = pd.DataFrame(rows.values()).fillna("")
        verdicts = [", ".join(claims.verdicts(label)) for label in rows]
        table["verdict"] = [verdict or "undecided" for verdict in verdicts]
        return to_markdown(table)

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
            before = self.results.untouched(system.run)
            row = {"loss": system.run.loss_name}
            for where in system.records[0]["queries"]:
                if where.partition("/")[0] not in (collection, *others):
                    continue
                difference = system.better_than(before, where=where) if system.is_trained else None
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

    def _untouched(self, system: System) -> System | None:
        if not self.results.has_untouched(system.run):
            return None
        return self.results.untouched(system.run)


def _difference(system: System, other: System | None) -> Difference | None:
    """Compare two systems on test, unless they are the same but for the other collections that were searched."""
    if other is None:
        return None
    run = dataclasses.replace(system.run, transfer=())
    other_run = dataclasses.replace(other.run, transfer=())
    both_untouched = not system.is_trained and not other.is_trained  # where settings of training mean nothing
    if run == other_run or both_untouched:
        return None
    return system.better_than(other)


def _corrected(differences: Sequence[Difference | None]) -> list[str]:
    """Correct the p-values of a table after Holm; empty where nothing was compared."""
    compared = [difference.p for difference in differences if difference is not None]
    corrected = iter(holm(compared))
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


def _training_of(system: System) -> str:
    """Write the seconds of training; nothing where there was none."""
    return f"{system.training:.0f}" if system.is_trained else ""


def _cost_of(name: str, records: Sequence[Record]) -> dict[str, Any]:
    """Add the costs of records up."""
    row: dict[str, Any] = {"grid": name, "records": len(records)}
    for column, part in {"training s": "training_seconds", "all s": "seconds"}.items():
        seconds = sum(record["cost"].get(part, 0.0) for record in records)
        row[column] = f"{seconds:.0f}"
    row["memory MB"] = max(record["cost"].get("peak_memory_mb", 0) for record in records)
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
