"""Malformed input gets the right answer or a clear error. ``make fuzz`` tries more, and writes the table."""

import itertools
import os
import shutil
from collections import Counter

import pytest

from benchmarks.pages import RELIABILITY, section, table, write_section
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex

from . import data, models  # noqa: F401
from .engine import ENTRIES, Outcome, explore

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))
SUITE_MILLISECONDS = 400
HIDDEN_AT_MOST = 0.02


class Tools:
    """An encoder, an index, and folders that no other example has."""

    def __init__(self, language_model, root):
        self.language_model, self.root, self.count = language_model, root, itertools.count()
        self.encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu")
        self.saved, self.indexed = self.encoder.copy().save(root / "saved"), root / "index.flex"
        documents = models.INDEXED.to_dict(orient="records")
        (self.encoder >> SelfDistillIndex(self.indexed, verbose=False)).index(documents)

    def path(self, name=""):
        folder = self.root / str(next(self.count))
        if name:
            folder.mkdir()
        return folder / name

    def register(self, **parts):
        return self.register_dataset(f"fuzz-{next(self.count)}", **parts)

    def damaged(self, source, damages):
        folder = shutil.copytree(source, self.path())
        for name, damage in damages:
            damage(folder / name)
        return folder


@pytest.fixture(scope="module")
def tools(language_model, tmp_path_factory):
    return Tools(language_model, tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def tallies():
    return {}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_malformed_input(entry, tools, tallies, register, monkeypatch):
    monkeypatch.chdir(tools.root)
    tools.register_dataset = register
    examples = EXAMPLES or SUITE_MILLISECONDS // entry.milliseconds
    tallies[entry.name] = explore(entry, tools, examples, SEED)
    faults = [text for (outcome, *_), text in tallies[entry.name][1].items() if outcome is not Outcome.HIDDEN]
    assert not faults, "\n" + "\n".join(faults)


def test_errors_name_their_cause(tallies):
    counted = {name: counts for name, (counts, _) in tallies.items()}
    counted["all"] = total = sum(counted.values(), start=Counter())
    rows = [[name, counts.total(), *map(counts.get, Outcome, itertools.repeat(0))] for name, counts in counted.items()]
    header = ["entry point", "examples", *(outcome.value for outcome in Outcome)]
    text = table(header, rows)
    hidden = total[Outcome.HIDDEN] / max(total[Outcome.HIDDEN] + total[Outcome.CLEAR], 1)
    if "FUZZ_PAGE" in os.environ:
        command = f"make fuzz FUZZ_EXAMPLES={EXAMPLES} FUZZ_SEED={SEED}"
        summary = f"{total.total():,} examples; {hidden:.1%} of errors hide their cause. Entry points with faults:"
        faulty = [row for row in rows if any(row[4:])]
        others = table(header[:4], [row[:4] for row in rows if row not in faulty])
        folded = f"<details>\n<summary>The entry points without faults</summary>\n\n{others}\n\n</details>"
        write_section("fuzz", section(command, summary, table(header, faulty), folded), RELIABILITY)
    print(text, *(finding for _, findings in tallies.values() for finding in findings.values()), sep="\n")
    assert hidden <= HIDDEN_AT_MOST
