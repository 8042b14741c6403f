"""Judged queries as a source of triples, and hard negatives mined while training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyterrier as pt
from datasets import Dataset
from transformers import TrainerCallback

from ..data.corpus import Corpus, Documents
from ..data.negatives import Negatives, from_results, from_topics, split_queries
from ..data.triples import Triples
from ..encoder.biencoder import SelfDistillBiEncoder
from ..utils.processes import agree
from .evaluation import search

logger = logging.getLogger(__name__)

# how many ranks after ``range_min`` hard negatives are mined from, if ``range_max`` is not set
MINING_DEPTH = 100


@dataclass(frozen=True, eq=False)  # frames have no single answer to ==
class JudgedQueries:
    """Queries with judged positives, and the options to draw negatives for them."""

    topics_or_results: pd.DataFrame
    qrels: pd.DataFrame
    corpus: Corpus | None
    fields: Sequence[str] | None
    text_field: str
    negatives: Negatives
    min_label: int
    seed: int

    def hold_out(self, share: float) -> tuple[JudgedQueries, pd.DataFrame, pd.DataFrame]:
        """Split off topics (or results) and qrels for evaluation, and return them after the training queries."""
        topics, qrels = self.topics_or_results, self.qrels
        # keep queries with the same text together
        one_query = _first_qids(topics.drop_duplicates("qid"))
        queries = pd.DataFrame({"own": list(one_query), "qid": list(one_query.values())})
        held_out = split_queries(queries, {"train": 1 - share, "valid": share}, self.seed)["valid"]["own"]
        is_held_out = qrels["qid"].isin(held_out)
        is_positive = qrels["qid"].isin(topics["qid"]) & (qrels["label"] >= self.min_label)
        to_train = qrels["qid"][is_positive & ~is_held_out].nunique()
        to_evaluate = qrels["qid"][is_positive & is_held_out].nunique()
        if not to_train or not to_evaluate:
            raise ValueError(
                f"valid_share={share} leaves {to_train} queries with relevant documents for training and "
                f"{to_evaluate} for evaluation, but both need at least one; give another share or seed, more queries, "
                "or validation topics and qrels to fit"
            )
        of_held_out = topics["qid"].isin(held_out)
        training = replace(self, topics_or_results=topics[~of_held_out], qrels=qrels[~is_held_out])
        return training, topics[of_held_out], qrels[is_held_out]

    @property
    def documents(self) -> Documents:
        """The documents to mine from."""
        return Documents(cast(Corpus, self.corpus), self.fields or [self.text_field])

    def draw(self) -> Triples:
        """Make triples with negatives drawn from the results, or from the corpus if there are topics only."""
        has_results = "docno" in self.topics_or_results
        if not has_results and self.corpus is None:
            raise ValueError(
                f"topics without results need a source of negatives, got the columns "
                f"{list(self.topics_or_results.columns)}; put a retriever and pt.text.get_text before the trainer, or "
                "give it corpus= to draw negatives from"
            )
        make: Callable[..., Triples] = from_results if has_results else from_topics
        return make(
            self.topics_or_results,
            self.qrels,
            corpus=self.corpus,
            negatives=self.negatives,
            min_label=self.min_label,
            seed=self.seed,
            text_field=self.text_field,
            fields=self.fields,
        )

    def mine(self, encoder: SelfDistillBiEncoder, step: int, folder: Path | None = None) -> Triples:
        """Draw hard negatives from the documents that the encoder retrieves from the corpus at this step."""
        topics = self.topics_or_results[["qid", "query"]].drop_duplicates("qid")
        # triples have no identifiers to tell apart queries with the same text
        one_query = _first_qids(topics)
        qids = self.qrels["qid"].map(lambda qid: one_query.get(qid, qid))
        depth = self.negatives.range_max or self.negatives.range_min + MINING_DEPTH
        results = search(encoder, topics.drop_duplicates("query"), self.documents, depth, folder)
        # change the seed, or positives would draw the same ranks in each round
        qrels = self.qrels.assign(qid=qids).groupby(["qid", "docno"], sort=False, as_index=False)["label"].max()
        return replace(self, topics_or_results=results, qrels=qrels, seed=self.seed + step).draw()


def _first_qids(topics: pd.DataFrame) -> dict[str, str]:
    """Map each query to the first query with the same text."""
    first = topics.groupby("query")["qid"].transform("first")
    return dict(zip(topics["qid"], first, strict=True))


class HardNegativeMiner(TrainerCallback):
    """Replaces the negatives of triples, from the second round on, by documents that the current encoder retrieves."""

    def __init__(self, encoder: SelfDistillBiEncoder, queries: JudgedQueries, rounds: int, folder: Path) -> None:
        self.encoder = encoder
        self.queries = queries
        self.rounds = rounds
        self.folder = folder
        self.mined: dict[tuple[str, str], tuple[str, ...]] = {}

    def describe(self) -> dict[str, Any]:
        """Describe the inputs of mining, in addition to the first triples."""
        return {
            "rounds": self.rounds,
            "negatives": asdict(self.queries.negatives),
            "min_label": self.queries.min_label,
            "corpus": self.queries.documents.fingerprint(),
        }

    def replace(self, rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """Replace the negatives of triples by the negatives mined last."""
        replaced = []
        for row in rows:
            mined = self.mined.get((row["query"], row["positive"]), ())
            replaced.append(row | dict(zip(_negative_columns(row), mined, strict=False)))
        return replaced

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.steps_per_round = math.ceil(state.max_steps / self.rounds)
        last = state.global_step - state.global_step % self.steps_per_round
        if last == 0:
            return
        if not agree(self._path(last).exists):
            # the run may have stopped between the checkpoint and mining
            if last != state.global_step:
                raise FileNotFoundError(
                    f"cannot resume the run, since {str(self.folder)!r} lacks the negatives that were mined after "
                    f"{last} steps; begin anew with overwrite=True"
                )
            agree(lambda: self._mine(last))
        self._read(last)

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        step = state.global_step
        if step % self.steps_per_round == 0 and step < state.max_steps:
            agree(lambda: self._mine(step))
            self._read(step)

    def _mine(self, step: int) -> None:
        logger.info("mining hard negatives after %d steps", step)
        triples = cast(Dataset, self.queries.mine(self.encoder, step, self.folder).dataset)
        # atomic, since a resumed run reads any existing file
        with pt.io.finalized_open(str(self._path(step)), "b") as file:
            triples.to_parquet(file)

    def _read(self, step: int) -> None:
        triples = Dataset.from_parquet(str(self._path(step)), keep_in_memory=True)
        columns = triples[:]
        negatives = zip(*(columns[name] for name in _negative_columns(columns)), strict=True)
        self.mined = dict(zip(zip(columns["query"], columns["positive"], strict=True), negatives, strict=True))

    def _path(self, step: int) -> Path:
        return self.folder / f"mined-{step}.parquet"


def _negative_columns(columns: Iterable[str]) -> list[str]:
    return [name for name in columns if name.startswith("negative")]
