"""The HTML page of a comparison."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from io import BytesIO
from typing import Any, TypeAlias

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from ..encoder.biencoder import SelfDistillBiEncoder
from ..encoder.card import description_rows, training_rows
from ..training.run_folder import PROGRESS, plot_history
from ..training.trainer import SelfDistillTrainer
from ..utils.folders import portable_name

TrainedEncoder: TypeAlias = SelfDistillBiEncoder | SelfDistillTrainer
CONFIDENCE = 0.95  # the confidence of intervals
RESULT_DEPTH = 10  # how many documents of a ranking the page shows
QUERIES_EACH_WAY = 10  # how many gained queries and how many lost queries the page shows per system
QUERY_LENGTH = 60  # how many characters of a query the plot shows
TEXT_START = 180  # how many characters of a text are visible before you expand it
TEXT_LENGTH = 1000  # the most characters of a text in the page
TEXT_BUDGET = 400_000  # the most characters of all texts of documents together
NONE = "\N{EN DASH}"  # the text for a missing number
WORD = re.compile(r"\w+")

# English words that are not highlighted as matches
FUNCTION_WORDS = (
    "a an and are as at be by can do does for from has have how if in into is it its not of on or so than that the "
    "then there these they this to was were what when where which who why will with you your"
)


def render_page(
    *,
    title: str,
    focus: str | None,
    table: pd.DataFrame,
    measures: Sequence[str],
    baseline: str,
    values: pd.DataFrame,
    queries: Mapping[str, str],
    changes: Mapping[str, Mapping[str, list[dict[str, Any]]]],
    texts: Mapping[str, str],
    models: Sequence[Mapping[str, Any]],
) -> str:
    """Render the page."""
    environment = Environment(
        loader=PackageLoader("pyterrier_selfdistill.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # jinja escapes "</script>"; leave other characters unescaped to save space
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    environment.filters |= {function.__name__: function for function in (figure, signed, p_value, logged)}
    script = environment.get_template("page.js").render()
    shown = [query for change in changes.values() for query in change["gained"] + change["lost"]]
    entries = sum(len(query["before"]) + len(query["after"]) for query in shown)
    length = min(TEXT_LENGTH, TEXT_BUDGET // max(entries, 1))
    others = [name for name in values.columns if name != baseline]
    summary = table[["name", *measures]]
    versions = [f"{name} {version(name)}" for name in ("pyterrier-selfdistill", "python-terrier", "ir-measures")]
    return environment.get_template("page.html.j2").render(
        title=title,
        made=", ".join([f"{date.today():%Y-%m-%d}", *versions]),
        copies={
            "CSV": summary.to_csv(index=False, float_format="%.4f"),
            "LaTeX": summary.to_latex(index=False, float_format="%.3f", escape=True),
        },
        tables={measure: measure_rows(table, measure) for measure in measures},
        baseline=baseline,
        others=others,
        chosen=focus or values[others].mean().idxmax(),
        confidence=f"{CONFIDENCE:.0%}",
        primary=measures[0],
        count=len(values),
        changes=changes,
        lacks_texts=entries > 0 and not texts,
        text_pieces=lambda docno, query: text_pieces(texts.get(docno, ""), query, length),
        models=models,
        style=environment.get_template("page.css").render(),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data={
            "baseline": list(values.columns).index(baseline),
            "systems": list(values.columns),
            "qids": list(values.index),
            "queries": [cut(queries[qid], QUERY_LENGTH)[0] for qid in values.index],
            "values": values.round(3).T.to_numpy().tolist(),
        },
    )


# --- measures --------------------------------------------------------------------------------------------------------


def measure_rows(table: pd.DataFrame, measure: str) -> list[dict[str, Any]]:
    """Describe each system by one measure; ``bar`` scales its interval to 0 to 100, where 50 means no difference."""
    extent = table[[f"{measure} difference low", f"{measure} difference high"]].abs().max().max()
    rows = []
    for record in table.to_dict(orient="records"):
        of_measure = {name.removeprefix(f"{measure} "): value for name, value in record.items()}
        low, difference, high = (of_measure[f"difference{end}"] for end in (" low", "", " high"))
        bar = None
        if not math.isnan(low):
            bar = [round(50 + 48 * end / extent, 1) for end in (low, difference, high)]
        mean_interval = f"{figure(of_measure['low'])} to {figure(of_measure['high'])}"
        rows.append(
            {
                "name": record["name"],
                "mean": record[measure],
                "is_best": record[measure] == table[measure].max(),
                "interval": NONE if math.isnan(of_measure["low"]) else mean_interval,
                "difference": difference,
                "difference_interval": NONE if math.isnan(low) else f"{signed(low)} to {signed(high)}",
                "better": of_measure["+"],
                "worse": of_measure["-"],
                "p": of_measure["p-value"],
                "p_corrected": of_measure["p-value corrected"],
                "is_significant": bool(of_measure["reject"]),
                "bar": bar,
            }
        )
    return rows


def figure(value: float) -> str:
    return NONE if pd.isna(value) else f"{value:.3f}"


def signed(value: float) -> str:
    return NONE if pd.isna(value) else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else figure(value)


def logged(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.4g}"


# --- queries ---------------------------------------------------------------------------------------------------------


def query_changes(
    before: pd.DataFrame, after: pd.DataFrame, values: pd.DataFrame, queries: Mapping[str, str], qrels: pd.DataFrame
) -> dict[str, list[dict[str, Any]]]:
    """Describe the queries that ``gained`` and ``lost`` most, largest change first."""
    differences = (values.iloc[:, 1] - values.iloc[:, 0]).sort_values(kind="stable")
    lost = differences[differences < 0].index[:QUERIES_EACH_WAY]
    gained = differences[differences > 0].index[::-1][:QUERIES_EACH_WAY]
    shown = {*gained, *lost}
    ranks_before, ranks_after = rankings(before, shown), rankings(after, shown)
    labels: dict[str, dict[str, int]] = {}
    for qid, docno, label in qrels[qrels["qid"].isin(shown)][["qid", "docno", "label"]].itertuples(index=False):
        labels.setdefault(qid, {})[docno] = label

    def describe(qid: str) -> dict[str, Any]:
        own, other, judged = ranks_after.get(qid, {}), ranks_before.get(qid, {}), labels[qid]

        def place(docno: str, ranks: Mapping[str, int], others: Mapping[str, int]) -> dict[str, Any]:
            placed = {"docno": docno, "rank": ranks.get(docno), "other_rank": others.get(docno)}
            return {**placed, "label": judged.get(docno), "is_relevant": docno in relevant}

        relevant = sorted((docno for docno in judged if judged[docno] > 0), key=lambda docno: (-judged[docno], docno))
        value_before, value_after = values.loc[qid]
        return {
            "qid": qid,
            "query": queries[qid],
            "value_before": value_before,
            "value_after": value_after,
            "difference": differences[qid],
            "before": [place(docno, other, own) for docno in list(other)[:RESULT_DEPTH]],
            "after": [place(docno, own, other) for docno in list(own)[:RESULT_DEPTH]],
            "relevant": [place(docno, own, other) for docno in relevant[:RESULT_DEPTH]],
        }

    return {"gained": [describe(qid) for qid in gained], "lost": [describe(qid) for qid in lost]}


def rankings(results: pd.DataFrame, qids: set[str]) -> dict[str, dict[str, int]]:
    """Return the ranks of documents by query, starting at 1, with ties broken as measures do."""
    ordered = results[results["qid"].isin(qids)].sort_values(["score", "docno"], ascending=False)
    found: dict[str, dict[str, int]] = {}
    for qid, docno in zip(ordered["qid"], ordered["docno"], strict=True):
        ranks = found.setdefault(qid, {})
        ranks[docno] = len(ranks) + 1
    return found


def text_pieces(text: str, query: str, length: int) -> dict[str, Any]:
    """Split the first ``length`` characters of a text into a visible ``start`` and a ``rest``; mark query words."""
    shown, beyond = cut(" ".join(text.split()), length)
    start, rest = cut(shown, TEXT_START)
    return {"start": matching_pieces(start, query), "rest": matching_pieces(rest, query), "is_cut": bool(beyond)}


def matching_pieces(text: str, query: str) -> list[tuple[str, bool]]:
    """Split a text at the words that it shares with a query, ignoring case and function words."""
    words = {word.casefold() for word in WORD.findall(query)}.difference(FUNCTION_WORDS.split())
    pieces = []
    end = 0
    for match in WORD.finditer(text):
        if match[0].casefold() in words:
            pieces += [(text[end : match.start()], False), (match[0], True)]
            end = match.end()
    pieces.append((text[end:], False))
    return [(piece, is_match) for piece, is_match in pieces if piece]


def cut(text: str, length: int) -> tuple[str, str]:
    """Split a text after at most ``length`` characters, if possible at a space, which is dropped."""
    if len(text) <= length:
        return text, ""
    space = text.rfind(" ", 0, length + 1)
    if space <= 0:
        return text[:length], text[length:]
    return text[:space], text[space + 1 :]


# --- encoders --------------------------------------------------------------------------------------------------------


def describe_model(name: str, model: TrainedEncoder) -> dict[str, Any]:
    """Describe an encoder: ``facts`` as titles and texts with backticks, its ``history`` and a ``picture`` of that."""
    if isinstance(model, SelfDistillTrainer):
        encoder, history = model.encoder, model.history
    else:
        encoder, milestones = model, pd.DataFrame(model.training_summary.get("history", []))
        history = milestones.reindex(columns=list(dict.fromkeys([*PROGRESS, *milestones.columns])))
    described = encoder.metadata
    facts = [("Name", f"`{portable_name(encoder.name) or 'unknown'}`"), *description_rows(described["model"])]
    if described["training"]:
        facts += training_rows(described["training"])
    picture = ""
    # a single point makes no curve
    if len(history) > 1:
        buffer = BytesIO()
        plot_history(history).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        picture = f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    history = history.dropna(axis="columns", how="all")
    return {"name": name, "facts": facts, "history": history, "picture": picture}
