"""The speed benchmarks: their smallest measurements, and that pages say what the measured rates give."""

from functools import partial

import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertModel

from benchmarks import arithmetic, gpu, quality, retrieval, sharding, throughput, training_speed
from benchmarks.harness import Rates, in_turns, rates_table
from benchmarks.large_collections import PAGE, SPACE, SPEED, find, make_tables, read_rates
from benchmarks.large_collections import Rates as Measured
from benchmarks.study.collection import Collection
from pyterrier_selfdistill import AdaptiveMarginLoss, SelfDistillTrainer

RATES = Measured(encoding=100, int8=200, one_query=90, hundred_queries=20, joining=1e8, start=10, dimension=250)


@pytest.fixture
def small() -> Collection:
    """A collection of 40 documents, of which each query finds two relevant ones."""
    documents = pd.DataFrame({"docno": [f"d{row}" for row in range(40)], "text": ["sort the table", "read"] * 20})
    topics = pd.DataFrame({"qid": ["q0", "q1", "q2"], "query": ["sort", "read", "plot"]})
    qrels = pd.DataFrame([(f"q{row % 2}", f"d{row}", 1) for row in range(4)], columns=["qid", "docno", "label"])
    return Collection(documents, {"test": (topics, qrels), "train": (topics, qrels)})


def test_works_are_done_in_turns_and_compared_turn_by_turn():
    done: list[str] = []
    rates = in_turns({name: lambda name=name: done.append(name) for name in ("ours", "theirs")}, amount=10, turns=2)
    assert (done, len(rates["ours"].turns)) == (["ours", "theirs", "ours", "theirs"], 2)
    noisy = {"theirs": Rates([10.0, 30.0]), "ours": Rates([5.0, 15.0])}
    last = rates_table(("a", "b", "c"), noisy, "theirs").splitlines()[-1]
    assert last == "| ours | 10.0 (5.0 to 15.0) | 0.50x (0.50 to 0.50) |"


def test_machines_share_the_encoding_and_not_the_joining():
    tables = make_tables(RATES, documents=[10**6], machines=[1, 10], price=2)
    one, ten = (line.strip().replace(SPACE, " ") for line in tables["several machines"].splitlines()[-2:])
    assert one == '"1,000,000", "1", "2.8 h", "10 s", "2.8", "2 GB", "90 ms", "5.57"'
    assert ten == '"1,000,000", "10", "17 min", "10 s", "2.8", "2 GB", "9 ms", "5.62"'
    alone = make_tables(RATES, documents=[10**6])["one machine"].splitlines()[-1].strip().replace(SPACE, " ")
    assert alone == '"1,000,000", "1 GB", "1.3 GB", "2.8 h", "83 min", "90 ms", "20 ms"'


def test_the_page_on_large_collections_has_the_measured_rates():
    assert all(f"<!-- {name} -->" in SPEED.read_text() for name in throughput.SECTIONS)
    page = PAGE.read_text()
    for name, table in make_tables(read_rates(SPEED)).items():
        assert f".. {name}\n{table}\n.. /{name}\n" in page, "run python -m benchmarks.large_collections --write"
    with pytest.raises(ValueError, match="make speed"):
        find("| backend | size |\n|---|---|\n| retriever | 10 |\n", {"backend": "other"})


def test_padding_is_counted():
    texts = ["sort the rows"] * (training_speed.BATCH - 1)
    columns = {"query": ["sort"] * training_speed.BATCH, "positive": ["write", *texts]}
    counted = training_speed.count_padding(pd.DataFrame({**columns, "negative": [*texts, "read " * 27 + "a file"]}))
    real = 62 * 5 + 3 + 31  # with the marks at both ends
    assert counted["column by column"] == (32 * 5 + 32 * 31) / real
    assert counted["one pool"] == 64 * 31 / real
    assert counted["one pool, in 2 passes"] == (63 * 5 + 31) / real


def test_other_ways_to_embed_train_the_same_model(encoder, tmp_path):
    """The measures of training differ in speed only."""
    triples = [("sort", "sort the rows", "plot a file by mean value"), ("read", "read a file", "sort")] * 4
    for module in encoder.model.modules():
        if hasattr(module, "p"):
            module.p = 0.0  # no dropout
    losses = []
    for number, loss in enumerate((AdaptiveMarginLoss(), partial(training_speed.EmbeddedApart, pool=True))):
        options = {"per_device_train_batch_size": 4, "logging_steps": 1, "verbose": False, "bf16": False}
        trainer = SelfDistillTrainer(encoder, tmp_path / str(number), loss=loss, **options).fit_triples(triples)
        losses.append(trainer.history["loss"].dropna().tolist())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_searching_growth_and_joining_are_measured():
    rows = retrieval.measure_searching([40], ["np_retriever"], depths=(3,), dimension=8)
    assert [row["queries"] for row in rows if row["ms/query"] > 0] == [1, 100]
    (grown,) = retrieval.measure_growth([50], dimension=8)
    assert grown["documents"] == 50
    row = sharding.measure_joining(103, 8, 4)
    assert row["disk, MB"] == pytest.approx(103 * 8 * 4 / 1e6)


def test_operations_of_all_threads_are_counted(encoder):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert arithmetic.count(lambda: encoder.encode_docs([f"sort {'the ' * n}" for n in range(32)]), threads=1) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_gpu_is_measured_as_a_processor_is(monkeypatch, tmp_path):
    texts = {"query": ["sort"], "positive": ["sort the rows"], "negative": ["plot a file"]}
    monkeypatch.setattr(
        arithmetic, "draw_triples", lambda data, number: pd.DataFrame(texts).sample(number, replace=True)
    )
    monkeypatch.setattr(arithmetic, "draw_documents", lambda data: [{"text": "sort the rows"}] * 9)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setattr(gpu, "DECODER", {**small, "num_key_value_heads": 1})
    bert = partial(arithmetic.random_encoder, make=BertModel, config=BertConfig(**small))
    monkeypatch.setattr(gpu, "ENCODERS", {"encoder": (bert, None), "decoder": (gpu.decoder, 2)})
    monkeypatch.setattr(arithmetic, "MATRICES", {"cpu": 8})
    monkeypatch.setattr(arithmetic, "ENCODED", {"cpu": 4})
    shares, searched = gpu.measured_parts(tmp_path, batches=[4], sizes=[40], compiled=False)
    assert [line.split(" | ")[:2] for line in shares.splitlines()[4:]] == [
        [f"| {name}", work] for name in ("encoder", "decoder") for work in ("training, batch 4", "encoding")
    ]
    assert all(float(line.split(" | ")[2]) > 0 for line in shares.splitlines()[4:])
    assert len(searched.splitlines()) == 2 + 2 * 2
    assert "<!-- gpu -->" in SPEED.read_text()


def test_growth_of_a_step_is_measured(monkeypatch, language_model):
    monkeypatch.setattr(training_speed, "MINILM", str(language_model))
    monkeypatch.setattr(training_speed, "in_own_process", lambda work, *arguments: work(*arguments))
    grown = training_speed.measure_growth(batches=[2], negatives=[3])
    ((batch,), (negatives,)) = grown.values()
    assert (batch["batch"], negatives["negatives"]) == (2, 3)
    assert min(batch["seconds"], negatives["seconds"], batch["peak, MB"], negatives["peak, MB"]) > 0


def test_small_vectors_and_backends_are_measured(encoder, small, tmp_path):
    rows = quality.measure_vectors(encoder, small, tmp_path, (32, 8))
    assert [row["MB"] for row in rows[:: len(quality.KINDS)]] == ["0.01", "0.00"]
    assert 0 < float(rows[0]["nDCG@10"]) <= 1
    documents, topics, qrels = quality.part_of(small)
    assert len(documents) == 40
    assert topics["qid"].tolist() == ["q0", "q1"]
    assert quality.measure(encoder, documents, topics, qrels) == pytest.approx(float(rows[0]["nDCG@10"]), abs=1e-3)
