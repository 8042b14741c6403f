"""Write the page of a study in Markdown, with tables and figures, from a template in Jinja.

The public methods of :class:`Report` and the figures are functions of the template; ``study`` and ``results`` are there
too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .config import describe_start, varying
from .figures import draw_differences
from .records import Record
from .results import Results, System
from .statistics import EQUIVALENCE_BOUND, NON_INFERIORITY_BOUND, Claim, Claims, average, holm

CLAIMS = {
    "difference": "different",
    "equivalence": f"equivalent within {EQUIVALENCE_BOUND}",
    "non-inferiority": f"at most {NON_INFERIORITY_BOUND} worse",
}
"""The words of tables for the kinds of claims."""


class Report:
    """A page, ``RESULTS.md``, with tables and figures in a folder."""

    def __init__(self, results: Results, folder: Path) -> None:
        self.results = results
        self.folder = folder

    def write(self, template: str | Path | None = None) -> Path:
        """Fill in a template, by default ``report.md.j2``, and return the written page."""
        text = Path(template or Path(__file__).with_name("report.md.j2")).read_text(encoding="utf-8")
        # strict, since a misspelled name would leave a hole in the page
        environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, extensions=["jinja2.ext.do"]
        )
        environment.filters |= {"thousands": "{:,}".format, "markdown": to_markdown}
        functions = [self.collections, self.table, self.best_table, self.cost_table, self.figure]
        functions += [self.claims, self.claims_table, varying, describe_start, folded, draw_differences]
        environment.globals |= {function.__name__: function for function in functions}
        environment.globals |= {"study": self.results.study, "results": self.results}
        rendered = environment.from_string(text).render()
        self.folder.mkdir(parents=True, exist_ok=True)
        page = self.folder / "RESULTS.md"
        page.write_text(re.sub(r"\n{3,}", "\n\n", rendered), encoding="utf-8")  # loops leave empty lines
        return page

    def collections(self, grid: str) -> list[str]:
        """Name the collections of a grid that have records."""
        return list(dict.fromkeys(system.run.collection for system in self.results.grid(grid)))

    def table(self, grid: str, collection: str, columns: Sequence[str] = ()) -> str:
        """Make a table of the systems of a grid on a collection, best on dev first.

        Returns:
            A row a system, with the given settings: measures on test as means over seeds, the difference of nDCG@10 to
            the untrained encoder with its interval, and the p-value after Holm's correction within the table. If only
            dev was measured: nDCG@10 on dev.
        """
        systems = sorted(self.results.grid(grid, collection=collection), key=attrgetter("dev"), reverse=True)
        tested = [system for system in systems if system.is_tested]
        if tested:
            return to_markdown(pd.DataFrame(self._rows(tested, columns)))
        rows = []
        for system in systems:
            measured = {"seeds": len(system.records), "nDCG@10 on dev": f"{system.dev:.3f}"}
            rows.append(_settings_of(system, columns) | measured | {"training, s": _seconds_of(system)})
        return to_markdown(pd.DataFrame(rows))

    def best_table(self, collection: str) -> str:
        """Make a table of the best system of each loss and encoder, with the settings that differ among them."""
        systems = self.results.best(collection)
        return to_markdown(pd.DataFrame(self._rows(systems, varying([system.run for system in systems]))))

    def cost_table(self) -> str:
        """Make a table of records, seconds and memory for each grid; a shared run counts in the first one."""
        parts: dict[str, list[Record]] = {}
        for run, grid in self.results.study.grid_of.items():
            if run.key in self.results.records:
                parts.setdefault(grid, []).append(self.results.records[run.key])
        rows = []
        for name, records in {**parts, "all": list(self.results.records.values())}.items():
            costs = pd.DataFrame([record["cost"] for record in records])
            row = {"grid": name, "records": len(records)}
            for column, part in {"training, s": "training_seconds", "total, s": "seconds"}.items():
                row[column] = f"{costs[part].sum():.0f}" if part in costs else "0"
            rows.append({**row, "peak memory, MB": costs["peak_memory_mb"].max()})
        return to_markdown(pd.DataFrame(rows))

    def claims(self, rows: Sequence[tuple[str, System | list[System], Any, str]]) -> Claims:
        """Test all claims of a section, and correct them together.

        Each is a label, two systems and a kind. Two lists of systems, one for each cell, are compared on average.
        """
        claims = []
        for label, one, other, kind in rows:
            if isinstance(one, System):
                difference = one.better_than(other)
            else:
                pairs = zip(one, other, strict=True)
                difference = average([(system.run.collection, system.better_than(rival)) for system, rival in pairs])
            claims.append(Claim(label, difference, kind))
        return Claims(claims)

    def claims_table(self, claims: Claims) -> str:
        """Make a table of claims: a row a pair of systems, a p-value a kind of claim."""
        rows: dict[str, dict[str, str]] = {}
        for claim, p in zip(claims.claims, claims.p, strict=True):
            row = rows.setdefault(claim.label, {"systems": claim.label, "difference": str(claim.difference)})
            row[f"p-value: {CLAIMS[claim.kind]}"] = f"{p:.1g}"
        table = pd.DataFrame(rows.values())
        table["verdict"] = [", ".join(claims.verdicts(label)) or "undecided" for label in rows]
        return to_markdown(table)

    def figure(self, name: str, drawn: Figure, description: str = "") -> str:
        """Save a figure, and return the Markdown that shows it."""
        path = self.folder / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=110)
        return f"![{description or name}](figures/{name}.png)"

    def _rows(self, systems: Sequence[System], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Make the rows of a table, with p-values that are corrected over them."""
        differences = []
        for system in systems:
            before = self.results.untouched(system.run) if system.is_trained else None
            differences.append(None if before is None else system.better_than(before))
        corrected = iter(holm([difference.p() for difference in differences if difference is not None]))
        rows = []
        for system, difference in zip(systems, differences, strict=True):
            row = _settings_of(system, columns) | {"seeds": len(system.records)}
            row |= {name: f"{system.mean(system.test, name):.3f}" for name in ("nDCG@10", "RR@10", "R@100")}
            row |= {f"nDCG@10 on {name}": f"{system.mean(f'{name}/test'):.3f}" for name in system.run.transfer}
            seeds = system.means(system.test)
            row["std over seeds"] = f"{np.std(seeds):.3f}" if len(seeds) > 1 else ""
            row["difference"] = "" if difference is None else str(difference)
            row["p-value"] = "" if difference is None else f"{next(corrected):.1g}"
            rows.append(row | {"training, s": _seconds_of(system)})
        return rows


def to_markdown(table: pd.DataFrame) -> str:
    """Write a table in Markdown.

    Example:
        >>> print(to_markdown(pd.DataFrame({"loss": ["InfoNCE"], "nDCG@10": [0.5]})))
        | loss | nDCG@10 |
        | --- | --- |
        | InfoNCE | 0.5 |
    """
    present = table.astype(object).where(table.notna(), "")
    rows = [list(map(str, table.columns)), ["---"] * len(table.columns), *present.map(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def folded(summary: str, content: str) -> str:
    """Fold a part of a page, so that only its summary shows; GitHub needs the blank lines."""
    return f"<details>\n<summary>{summary}</summary>\n\n{content.strip()}\n\n</details>"


def _settings_of(system: System, columns: Sequence[str]) -> dict[str, Any]:
    return {"loss": system.run.loss_name} | {name.replace("_", " "): getattr(system.run, name) for name in columns}


def _seconds_of(system: System) -> str:
    return f"{system.seconds:.0f}" if system.is_trained else ""
