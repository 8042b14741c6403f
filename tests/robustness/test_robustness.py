"""Malformed input gets the right answer or a clear error. ``make fuzz`` tries more, and writes the table."""

import itertools
import os
import shutil

import numpy as np
import pytest
import torch

from benchmarks.pages import RELIABILITY, section, table, write_section
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex

from . import data, models
from .engine import Outcome, Tally, explore

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SUITE_MILLISECONDS = 400
HIDDEN_AT_MOST = 0.02

ENTRIES = [models.TrainerOptions, models.Fit, models.LoopArguments, data.Results, data.Topics, data.TriplesInMemory]
ENTRIES += [*map(data.triples_in_file, ["tsv", "csv", "jsonl", "parquet"]), data.Identifiers, data.Docpairs]
ENTRIES += [data.SplitQueries, models.NegativesOptions, models.LossOptions, models.LossOfTensors, models.Evaluate]
ENTRIES += [models.EncodeQueries, models.EncodeDocuments, models.TransformQueries, models.TransformDocuments]
ENTRIES += [models.TransformResults, models.BuildRetriever, models.BuildIndex, models.Retrieve, models.ScoreResults]
ENTRIES += [models.OpenIndex, models.OpenEncoder, models.PretrainedOptions]
ENTRIES += [models.SaveEncoder]


class Tools:
    """An encoder, an index, and folders that no other example has."""

    def __init__(self, language_model, root):
        self.language_model, self.root = language_model, root
        self.encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu")
        self.saved, self.indexed = self.encoder.copy().save(root / "saved"), root / "index.flex"
        documents = [{"docno": docno, "text": text} for docno, text in models.INDEXED.items()]
        (self.encoder >> SelfDistillIndex(self.indexed, verbose=False)).index(documents)
        self.count, self.known = itertools.count(), {}

    def path(self, name=""):
        folder = self.root / str(next(self.count))
        if name:
            folder.mkdir()
        return folder / name

    def register(self, **parts):
        return self.register_dataset(f"fuzz-{next(self.count)}", **parts)

    def damaged(self, source, damages):
        folder = shutil.copytree(source, self.path())
        for damage in damages:
            damage(folder)
        return folder

    def vectors(self, role, texts):
        """Encode each text by itself with sentence-transformers."""
        for text in texts:
            if (role, text) not in self.known:
                self.known[role, text] = getattr(self.encoder.model, f"encode_{role}")([text])[0]
        return np.array([self.known[role, text] for text in texts]).reshape(len(texts), -1)

    def scores(self, queries, documents):
        return self.vectors("query", queries) @ self.vectors("document", documents).T


@pytest.fixture(scope="module")
def tools(language_model, tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Tools(language_model, tmp_path_factory.mktemp("examples"))
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tallies():
    return {}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_malformed_input(entry, tools, tallies, register, monkeypatch):
    monkeypatch.chdir(tools.root)
    tools.register_dataset = register
    tally = tallies[entry.name] = explore(entry(tools), EXAMPLES or SUITE_MILLISECONDS // entry.milliseconds, SEED)
    findings = tally.findings_of(Outcome.WRONG, Outcome.REFUSED, Outcome.HANGS)
    assert not findings, "\n" + "\n".join(findings)


def test_errors_name_their_cause(tallies):
    total = Tally("all", sum((tally.counts for tally in tallies.values()), start=Tally("").counts))
    rows = [
        [tally.name, tally.counts.total(), *(tally.counts[outcome] for outcome in Outcome)]
        for tally in [*tallies.values(), total]
    ]
    text = table(["entry point", "examples", *(outcome.value for outcome in Outcome)], rows)
    if "FUZZ_PAGE" in os.environ:
        command = f"make fuzz FUZZ_EXAMPLES={EXAMPLES} FUZZ_SEED={SEED}"
        share = f"{total.hidden:.1%} of errors hide their cause."
        write_section("fuzz", section(command, share, text), RELIABILITY)
    findings = [finding for tally in tallies.values() for finding in tally.findings_of(Outcome.HIDDEN)]
    print("\n".join([text, *findings]))
    assert total.hidden <= HIDDEN_AT_MOST
