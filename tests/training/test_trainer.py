"""The trainer: what it learns, what it leaves alone, what it writes, and what it says when it cannot train."""

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from ir_measures import RR, nDCG
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import MarginMSELoss, MultipleNegativesRankingLoss
from torch import nn

from pyterrier_selfdistill import (
    AdaptiveMarginLoss,
    Negatives,
    NotFittedError,
    SelfDistillationLoss,
    SelfDistillBiEncoder,
    SelfDistillTrainer,
)
from pyterrier_selfdistill.data.triples import from_texts
from pyterrier_selfdistill.training.arguments import PRESETS, mixed_precision

THINGS = ["table", "matrix", "file", "plot", "array", "row", "column", "value"]


@pytest.fixture
def corpus():
    """Documents about things; a query is relevant to those about its thing."""
    verbs = ["sort", "read", "write", "return", "plot"]
    rows = [(f"{thing}-{verb}", f"{verb} the {thing} by mean") for thing in THINGS for verb in verbs]
    return pd.DataFrame(rows, columns=["docno", "text"])


@pytest.fixture
def topics():
    return pd.DataFrame([(str(i), f"query {thing}") for i, thing in enumerate(THINGS)], columns=["qid", "query"])


@pytest.fixture
def qrels(topics, corpus):
    pairs = topics.merge(corpus, how="cross")
    pairs["label"] = [
        int(d.startswith(q.removeprefix("query "))) for q, d in zip(pairs["query"], pairs["docno"], strict=True)
    ]
    return pairs[["qid", "docno", "label"]]


@pytest.fixture
def results(topics, corpus):
    return topics.merge(corpus, how="cross").assign(score=0.0, rank=0)


@pytest.fixture
def make(encoder, tmp_path):
    def make(folder="run", **options):
        options = {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "verbose": False, **options}
        return SelfDistillTrainer(encoder, tmp_path / folder, **options)

    return make


def test_learns_in_a_pipeline(make, encoder, corpus, topics, qrels, results):
    retriever = pt.Transformer.from_df(results.drop(columns="query"))
    trainer = make(num_train_epochs=20, target="adaptive", measures=[nDCG @ 10, RR])
    (retriever >> trainer).fit(topics, qrels, topics, qrels)

    history = trainer.history
    assert list(history.columns) == ["step", "epoch", "loss", "margin", "target", "learning_rate", "nDCG@10", "RR"]
    assert history["loss"].dropna().iloc[-1] < history["loss"].dropna().iloc[0] / 2
    assert history["target"].dropna().between(0, 1).all()
    gap = (history["target"] - history["margin"]).dropna()
    assert gap.iloc[-1] < gap.iloc[0] / 2

    before, after = (pt.Experiment([s], results, qrels, ["ndcg"])["ndcg"][0] for s in (encoder, trainer.encoder))
    assert after > before + 0.1
    pd.testing.assert_frame_equal(trainer(results), trainer.encoder(results))


def test_the_first_encoder_stays_as_it_was(make, encoder, results, qrels):
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    trainer = make().fit(results, qrels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.model.state_dict().items())
    assert trainer.encoder != encoder
    assert not encoder.training_summary


def test_same_seed_same_model(make, results, qrels):
    first, same, other = (make(f"run{i}", seed=seed).fit(results, qrels).encoder for i, seed in enumerate([1, 1, 2]))
    assert first.model_name == same.model_name
    assert first.model_name != other.model_name


def test_best_checkpoint_is_kept(make, results, qrels):
    """A learning rate that destroys the model after a good start: the encoder is the one from the start."""
    trainer = make(num_train_epochs=4, learning_rate=0.3, warmup_steps=0, max_grad_norm=1e9, eval_steps=2, bf16=False)
    trainer.fit(results, qrels, results, qrels)
    measured = trainer.history.set_index("step")["nDCG@10"].dropna()
    best = trainer.encoder.training_summary["best_step"]
    assert measured[best] == measured.drop(0).max()
    found = trainer.encoder(results)
    assert pt.Evaluate(found, qrels, [nDCG @ 10])["nDCG@10"] == pytest.approx(measured[best], abs=1e-6)


def test_early_stopping(make, results, qrels):
    trainer = make(num_train_epochs=50, learning_rate=1e-12, eval_steps=1, patience=3)
    trainer.fit(results, qrels, results, qrels)
    assert trainer.history["step"].max() == 4


def test_warns_when_nothing_improves(make, results, qrels, caplog):
    with caplog.at_level(logging.WARNING, "pyterrier_selfdistill"):
        make(learning_rate=1e-12).fit(results, qrels, results, qrels)
    assert "did not improve nDCG@10" in caplog.text


def test_what_is_written(make, results, qrels, tmp_path):
    trainer = make().fit(results, qrels, results, qrels)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {"model", "history.csv", "history.png", "checkpoints"}
    assert pd.read_csv(folder / "history.csv")["step"].tolist() == trainer.history["step"].tolist()
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")
    loaded = pt.Artifact.load(str(folder / "model"))
    assert loaded.model_name == trainer.encoder.model_name
    summary = json.loads((folder / "model" / "pt_meta.json").read_text())["training"]
    assert summary["data"]["triples"] == 40
    assert summary["loss"]["target"] == "distributed"
    assert summary["best_measure"]["name"] == "nDCG@10"
    assert "Adaptive Relevance Margins" in (folder / "model" / "README.md").read_text()
    assert [axes.get_title() for axes in trainer.plot().axes] == ["Loss", "Margin against target", "Validation"]


def test_a_run_is_not_replaced_unasked(make, results, qrels):
    make().fit(results, qrels)
    with pytest.raises(FileExistsError, match="resume=True.*overwrite=True"):
        make().fit(results, qrels)
    make(overwrite=True).fit(results, qrels)


def test_vectors_of_a_dense_retriever_are_not_validated_with(make, encoder, results, qrels):
    with_vectors = encoder.doc_encoder()(encoder.query_encoder()(results))
    clean, stale = (make(f"{i}").fit(results, qrels, r, qrels) for i, r in enumerate([results, with_vectors]))
    pd.testing.assert_frame_equal(stale.history, clean.history)


def test_float_labels(make, results, qrels):
    floats = qrels.astype({"label": float})
    assert make("a").fit(results, floats, results, floats).history["nDCG@10"].notna().any()
    with pytest.raises(ValueError, match="no whole numbers"):
        make("b").fit(results, floats, results, floats.assign(label=0.5))


def test_a_failed_fit_keeps_the_model_before(make, results, qrels, tmp_path, monkeypatch):
    trainer = make().fit(results, qrels)
    monkeypatch.setattr(SelfDistillationLoss, "forward", lambda *_: 1 / 0)
    for again in (trainer, make(overwrite=True)):
        with pytest.raises(ZeroDivisionError):
            again.fit(results, qrels)
        assert pt.Artifact.load(str(tmp_path / "run" / "model")) == trainer.encoder


def test_a_model_without_checkpoints_is_not_resumed(make, results, qrels, tmp_path):
    make().fit(results, qrels)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(FileExistsError, match="no checkpoint to resume from"):
        make(resume=True).fit(results, qrels)


def test_without_anything_to_plot(make, results, qrels, tmp_path):
    make(logging_strategy="no").fit(results, qrels)
    assert (tmp_path / "run" / "history.png").exists()


def test_16_bit_weights_train_in_32_bits(language_model, results, qrels, tmp_path):
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype="bfloat16")
    trainer = SelfDistillTrainer(encoder, tmp_path / "run", verbose=False).fit(results, qrels)
    assert {p.dtype for p in trainer.encoder.model.parameters()} == {torch.float32}
    assert {p.dtype for p in encoder.model.parameters()} == {torch.bfloat16}


def test_a_bad_argument_does_not_cost_an_earlier_run(make, results, qrels, tmp_path):
    make().fit(results, qrels)
    with pytest.raises(ValueError, match="chilly"):
        make(overwrite=True, lr_scheduler_type="chilly").fit(results, qrels)
    assert (tmp_path / "run" / "model" / "pt_meta.json").exists()


def test_arguments_of_any_type_are_recorded(make, results, qrels):
    trainer = make(batch_sampler=BatchSamplers.NO_DUPLICATES).fit(results, qrels)
    assert "no_duplicates" in (trainer.encoder.path / "pt_meta.json").read_text()


def test_fitting_again_starts_anew(make, results, qrels):
    trainer = make().fit(results, qrels)
    first = trainer.encoder.model_name
    assert trainer.fit_triples([("sort", "sort the rows", "plot")] * 50).encoder.model_name != first
    assert trainer.fit(results, qrels).encoder.model_name == first


def test_resuming_gives_the_model_of_an_uninterrupted_run(make, results, qrels, monkeypatch):
    options = {"num_train_epochs": 2, "save_steps": 3, "eval_steps": 3}
    whole = make("whole", **options).fit(results, qrels, results, qrels)

    compute, steps = SelfDistillationLoss.forward, iter(range(100))

    def interrupted(*args, **kwargs):
        if next(steps) == 7:
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    monkeypatch.setattr(SelfDistillationLoss, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make("cut", **options).fit(results, qrels, results, qrels)
    monkeypatch.undo()
    with pytest.raises(FileExistsError):
        make("cut", **options).fit(results, qrels, results, qrels)
    resumed = make("cut", resume=True, **options).fit(results, qrels, results, qrels)
    assert resumed.encoder.model_name == whole.encoder.model_name
    assert resumed.encoder.training_summary["similarity"] == whole.encoder.training_summary["similarity"]
    pd.testing.assert_frame_equal(resumed.history, whole.history)


def test_resuming_with_other_settings(make, results, qrels):
    make().fit(results, qrels)
    assert make(resume=True).fit(results, qrels).encoder.training_summary["steps"] == 5
    with pytest.raises(ValueError, match="other settings: loss was .*distributed.* and is .*0.3.*overwrite=True"):
        make(resume=True, target=0.3).fit(results, qrels)
    with pytest.raises(ValueError, match="data was .*'triples': 40.*; seed was 42 and is 7"):
        make(resume=True, seed=7).fit(results[results["qid"] < "4"], qrels)


def test_a_checkpoint_that_was_cut_off_is_not_resumed(make, results, qrels, tmp_path):
    broken = tmp_path / "run" / "checkpoints" / "checkpoint-99"
    broken.mkdir(parents=True)
    (broken / "trainer_state.json").write_text('{"global_step": 9')
    trainer = make(resume=True).fit(results, qrels)
    assert trainer.encoder.training_summary["steps"] == 5


def test_topics_with_a_corpus(make, topics, corpus, qrels):
    """Random negatives, and validation by searching."""
    trainer = make(corpus=corpus, negatives=2).fit(topics, qrels, topics, qrels)
    assert trainer.encoder.training_summary["data"]["triples"] == 40
    assert trainer.history["nDCG@10"].notna().sum() > 5


def test_a_corpus_that_can_be_read_once(make, topics, corpus, qrels):
    trainer = make(corpus=(record for record in corpus.to_dict(orient="records")))
    trainer.fit(topics, qrels, topics, qrels)
    assert trainer.history["nDCG@10"].dropna().iloc[-1] > 0


def test_validation_once_an_epoch(make, results, qrels):
    trainer = make(num_train_epochs=2, eval_strategy="epoch").fit(results, qrels, results, qrels)
    assert trainer.history["step"][trainer.history["nDCG@10"].notna()].tolist() == [0, 5, 10]


def test_relevant_documents_that_were_not_retrieved(make, results, qrels, corpus):
    few = results[~results["docno"].str.endswith("plot")]
    data = make("a").fit(few, qrels).encoder.training_summary["data"]
    assert (data["triples"], data["dropped"]["positive without text"]) == (32, 8)
    data = make("b", corpus=corpus).fit(few, qrels).encoder.training_summary["data"]
    assert data["triples"] == 40
    assert "positive without text" not in data["dropped"]


def test_graded_labels(make, results, qrels):
    graded = qrels.assign(label=qrels["label"] * (1 + results["docno"].str.endswith("plot").to_numpy()))
    summary = make(min_label=2).fit(results, graded).encoder.training_summary["data"]
    assert (summary["read"], summary["triples"]) == (320, 8)


def test_negatives_are_mined_again(make, topics, corpus, qrels, caplog):
    with caplog.at_level(logging.INFO, "pyterrier_selfdistill"):
        trainer = make(corpus=corpus, rounds=3, num_train_epochs=3, negatives=Negatives(2, range_max=20))
        # from a corpus without ranks, the first round draws from results
        retrieved = topics.merge(corpus, how="cross").assign(score=0.0, rank=0)
        trainer.fit(retrieved, qrels)
    assert [r.args for r in caplog.records if r.msg.startswith("mining")] == [(5,), (10,)]
    folder = trainer.output_dir / "checkpoints"
    mined = {step: pd.read_parquet(folder / f"mined-{step}.parquet") for step in (5, 10)}
    for frame in mined.values():
        things = frame["query"].str.removeprefix("query ")
        for name in ("negative_1", "negative_2"):
            assert not any(f" the {thing} " in text for thing, text in zip(things, frame[name], strict=True))
    assert not mined[5].equals(mined[10])


def test_mined_negatives_are_trained_with_and_resumed(make, topics, corpus, qrels, monkeypatch):
    options = {"corpus": corpus, "remine_steps": 4, "num_train_epochs": 2, "save_steps": 3}
    plain = make("plain", corpus=corpus, num_train_epochs=2).fit(topics, qrels)
    whole = make("whole", **options).fit(topics, qrels)
    assert whole.encoder.model_name != plain.encoder.model_name

    compute, steps = SelfDistillationLoss.forward, iter(range(100))

    def interrupted(*args, **kwargs):
        if next(steps) == 7:
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    monkeypatch.setattr(SelfDistillationLoss, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make("cut", **options).fit(topics, qrels)
    monkeypatch.undo()
    resumed = make("cut", resume=True, **options).fit(topics, qrels)
    assert resumed.encoder.model_name == whole.encoder.model_name


@pytest.mark.parametrize(
    "options", [{"target": 0.3}, {"target": "adaptive", "in_batch": True}, {"error": "soft"}], ids=str
)
def test_losses(make, results, qrels, options):
    trainer = make(**options).fit(results, qrels)
    used = trainer.encoder.training_summary["loss"]
    assert all(used[name] == value for name, value in options.items())


def test_other_losses(make, results, qrels):
    ablation = make("a", loss=AdaptiveMarginLoss("adaptive", detach_target=True)).fit(results, qrels)
    assert ablation.encoder.training_summary["loss"]["detach_target"] is True
    infonce = make("b", loss=MultipleNegativesRankingLoss).fit(results, qrels)
    assert infonce.encoder.training_summary["loss"]["name"] == "MultipleNegativesRankingLoss"
    assert infonce.history["margin"].isna().all()
    assert infonce.history["loss"].notna().any()
    assert infonce.plot().axes[-1].get_title() == "Loss"


def test_the_loss_trains_in_sentence_transformers_itself(tiny_model, tmp_path):
    data = from_texts([("sort", "sort the rows", "plot", "read a file"), ("plot", "plot a matrix", "sort", "mean")] * 8)
    args = SentenceTransformerTrainingArguments(
        str(tmp_path), use_cpu=True, learning_rate=1e-3, num_train_epochs=10, logging_steps=1, report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        tiny_model, args=args, train_dataset=data.dataset, loss=SelfDistillationLoss(tiny_model)
    )
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] / 2


def test_sentence_loss_equals_the_loss_on_embeddings(tiny_model):
    loss = SelfDistillationLoss(tiny_model.eval())
    columns = [["sort", "plot"], ["sort rows", "plot a matrix"], ["read", "write"]]
    features = [tiny_model.preprocess(column) for column in columns]
    embeddings = [torch.tensor(tiny_model.encode(column)) for column in columns]
    terms = AdaptiveMarginLoss().terms(*embeddings)
    assert loss(features).item() == pytest.approx(terms.loss.item(), abs=1e-6)
    assert loss.statistics["margin"].item() == pytest.approx(terms.margin.mean().item(), abs=1e-6)
    assert loss.statistics["target"].item() == pytest.approx(terms.target.mean().item(), abs=1e-6)
    with pytest.raises(ValueError, match="got 2 text column"):
        loss(features[:2])


def test_lengths_and_prompts_apply_in_training(language_model, tmp_path, monkeypatch):
    encoder = SelfDistillBiEncoder.from_pretrained(
        language_model, query_length=4, document_length=6, query_prompt="query: ", device="cpu"
    )
    seen = []
    forward = SelfDistillationLoss.forward
    monkeypatch.setattr(
        SelfDistillationLoss,
        "forward",
        lambda self, features, labels=None: seen.append(features) or forward(self, features, labels),
    )
    trainer = SelfDistillTrainer(encoder, tmp_path / "run", verbose=False)
    trainer.fit_triples(
        [("sort the rows of a table", "sort the rows of a table by column", "plot the mean of a matrix")]
    )
    widths = [features["input_ids"].shape[1] for features in seen[0]]
    assert widths == [4, 6, 6]
    tokens = encoder.model.tokenizer.convert_ids_to_tokens(seen[0][0]["input_ids"][0])
    assert tokens[1:3] == ["query", ":"]


def test_paper_preset(make, results, qrels):
    trainer = make(preset="paper", learning_rate=5e-7, per_device_train_batch_size=8, logging_steps=1)
    trainer.fit(results, qrels)
    rates = trainer.history["learning_rate"].dropna().to_numpy()
    np.testing.assert_allclose(rates, 5e-7 * 0.99999 ** np.arange(1, len(rates) + 1), rtol=1e-3)
    paper = PRESETS["paper"]
    assert (paper.patience, paper.arguments["per_device_train_batch_size"]) == (16, 128)


def test_any_training_argument_passes_through(make, results, qrels, monkeypatch):
    made = []
    init = SentenceTransformerTrainer.__init__
    monkeypatch.setattr(
        SentenceTransformerTrainer, "__init__", lambda self, **o: made.append(o["args"]) or init(self, **o)
    )
    make(max_steps=2, gradient_accumulation_steps=2, lr_scheduler_type="cosine").fit(results, qrels)
    assert (made[0].max_steps, made[0].gradient_accumulation_steps, made[0].seed) == (2, 2, 42)
    assert made[0].lr_scheduler_type == "cosine"


def test_mixed_precision_follows_the_hardware(monkeypatch):
    for amx in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert mixed_precision(torch.device("cpu")) == ({"bf16": True} if amx else {})
    for new in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda new=new: new)
        assert mixed_precision(torch.device("cuda")) == ({"bf16": True} if new else {"fp16": True})


def test_progress_bar(make, results, qrels, capsys):
    make("a", verbose=True).fit(results, qrels, results, qrels)
    bar = capsys.readouterr()
    assert bar.out == ""
    assert all(name in bar.err for name in ("5/5", "loss=", "margin=", "target=", "nDCG@10="))
    make("b").fit(results, qrels)
    silent = capsys.readouterr()
    assert silent.out == ""
    assert "Training" not in silent.err


def test_before_training(make, results, topics):
    trainer = make()
    for use in (lambda: trainer.encoder, trainer.plot, lambda: trainer(results), lambda: trainer(topics)):
        with pytest.raises(NotFittedError, match="call fit or fit_triples"):
            use()
    assert trainer.history.empty


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda r, q: (r.drop(columns="text"), q), ValueError, "expected a column 'text'.*get_text"),
        (
            lambda r, q: (r, q.astype({"qid": int})),
            ValueError,
            "got none: 8 topics.*'0'.*strings",
        ),
        (
            lambda r, q: (r.astype({"qid": int}), q.astype({"qid": int})),
            TypeError,
            "topics must be a string.*in 320",
        ),
        (lambda r, q: (r, q.assign(docno=7)), TypeError, "docno of qrels must be a string.*in 320"),
        (lambda r, q: (r, q.assign(label="1")), TypeError, "labels of qrels must be numbers.*got (str|object)"),
        (lambda r, q: (r, q.assign(label=[None] + [1.0] * 319)), TypeError, "1 of 320 missing"),
        (lambda r, q: (r, q.assign(label=0)), ValueError, "none of the 320 judgements.*relevant"),
        (lambda r, q: (r, q.drop(columns="label")), ValueError, r"\['label'\] missing"),
        (lambda r, q: (r.assign(text=7), q), TypeError, "'text' must hold a string.* in 320 of 320 rows"),
        (lambda r, q: (r.assign(text=None), q), TypeError, "'text' must hold a string.* in 320 of 320 rows"),
        (
            lambda r, q: (r.assign(text="  "), q),
            ValueError,
            "'text' must hold a text.* in 320 of 320 rows",
        ),
        (lambda r, q: (r, q.assign(label=1)), ValueError, "no triples.*320 x positive with fewer than 1 neg"),
        (lambda r, q: (r[r.docno == "x"], q), ValueError, "got none: 0 topics"),
        (
            lambda r, q: (r[(r.qid == "0") & ~r.docno.str.startswith("table")], q),
            ValueError,
            "no triples.*5 x positive without text.*corpus=",
        ),
        (lambda r, q: (r[["qid", "query"]].drop_duplicates(), q), ValueError, "no negatives.*corpus="),
    ],
)
def test_what_cannot_be_trained_with(make, results, qrels, change, error, message, tmp_path):
    with pytest.raises(error, match=message):
        make().fit(*change(results, qrels))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, q: (r, None), "topics .* and qrels"),
        (lambda r, q: (r[["qid", "query"]], q), "no candidates.*corpus="),
        (lambda r, q: (r.drop(columns="text"), q), "expected a column 'text'"),
        (lambda r, q: (r, q.astype({"qid": int})), "got none: 8 topics"),
    ],
)
def test_what_cannot_be_validated_with(make, results, qrels, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make().fit(results, qrels, *change(results, qrels))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learning_rte": 1}, TypeError, r"\['learning_rte'\]"),
        ({"preset": "papers"}, ValueError, "'papers' is unknown"),
        ({"target": "distributed", "in_batch": True}, ValueError, "not defined with in_batch"),
        ({"target": 0.5, "loss": AdaptiveMarginLoss()}, ValueError, "beside target"),
        ({"loss": torch.nn.MSELoss()}, TypeError, "give its class"),
        ({"loss": "l1"}, TypeError, "'l1' is neither"),
        ({"resume": True, "overwrite": True}, ValueError, "choose one"),
        ({"negatives": 0}, ValueError, "negatives must be a positive integer, got 0"),
        ({"rounds": 2}, ValueError, "corpus="),
        ({"rounds": 2, "corpus": [], "dataloader_num_workers": 1}, ValueError, "workers"),
        ({"rounds": 2, "remine_steps": 3, "corpus": []}, ValueError, "choose one"),
        ({"min_label": 0}, ValueError, "min_label must be a positive integer, got 0"),
        ({"measures": []}, ValueError, "must be a list of measures"),
        ({"measures": ["ndcg_cut_10"]}, TypeError, "expected an ir_measures.Measure, got 'ndcg_cut_10'"),
    ],
)
def test_bad_options(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_the_encoder_must_be_one(tiny_model, tmp_path):
    with pytest.raises(TypeError, match="SentenceTransformer.*from_pretrained"):
        SelfDistillTrainer(tiny_model, tmp_path)


@pytest.mark.parametrize("bf16", [False, True])
def test_readers_of_a_trained_model(make, results, qrels, tmp_path, bf16):
    """The saved model computes what the encoder in memory does, in whatever precision it was trained."""
    encoder = make(bf16=bf16).fit(results, qrels).encoder
    texts = ["sort the table"]
    st = SentenceTransformer(str(tmp_path / "run" / "model"))
    np.testing.assert_allclose(st.encode_document(texts), encoder.encode_docs(texts), atol=1e-6)


TrainerConformance = pt.testing.transformer_test_class(lambda: _unfitted())
_model_folder = None


@pytest.fixture(autouse=True, scope="module")
def _keep_model_folder(language_model):
    global _model_folder
    _model_folder = language_model


def _unfitted():
    return SelfDistillTrainer(SelfDistillBiEncoder.from_pretrained(_model_folder, device="cpu"), "unused")


def test_a_teacher_says_the_margins(encoder, tmp_path):
    rows = [("sort", "sort the rows", "read a file"), ("plot", "plot a matrix", "write a table")] * 8
    margins = {}
    for teacher in (1.5, -1.5):
        frame = pd.DataFrame(rows, columns=["query", "positive", "negative"]).assign(label=teacher)
        options = {"loss": MarginMSELoss, "learning_rate": 1e-3, "num_train_epochs": 3, "verbose": False}
        trained = SelfDistillTrainer(encoder, tmp_path / str(teacher), **options).fit_triples(frame).encoder
        query, positive, negative = trained.encode_docs(rows[0])
        margins[teacher] = query @ positive - query @ negative
    assert margins[1.5] > margins[-1.5] + 0.1


class Pulled(nn.Module):
    """A loss that no one would train with, to see what the trainer says of it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features, labels=None):
        _, positive, negative = (self.model(f)["sentence_embedding"] for f in features)
        return self.pull(positive, negative)


class Together(Pulled):
    """Pulls all documents to one place."""

    def pull(self, positive, negative):
        return -(positive @ negative.T).mean()


@pytest.mark.parametrize(("loss", "learning_rate"), [(Together, 1e-2), (None, 1e-3)])
def test_warns_when_documents_become_alike(encoder, tmp_path, caplog, loss, learning_rate):
    things = ["table", "matrix", "file", "array", "column", "rows", "value", "mean"]
    rows = [(f"sort {thing}", f"sort the {thing}", f"plot {thing} by {other}") for thing in things for other in things]
    trainer = SelfDistillTrainer(encoder, tmp_path / "run", loss=loss, learning_rate=learning_rate, verbose=False)
    similarity = trainer.fit_triples(rows * 4).encoder.training_summary["similarity"]
    assert (similarity["after"] > similarity["before"]) == (loss is Together)
    assert caplog.text.count("documents become alike") == (loss is Together)


class Afar(Pulled):
    """Pushes alike documents apart, and others together."""

    def pull(self, positive, negative):
        return (positive @ negative.T).diagonal().mean() - (positive @ positive.T).mean()


@pytest.mark.parametrize("learning_rate", [1e-2, 1e-5])
def test_warns_when_the_encoder_forgets(encoder, tmp_path, caplog, learning_rate):
    things = ["table", "matrix", "file", "array", "column", "rows", "value", "mean"]
    rows = [(f"sort {thing}", f"sort the {thing}", f"sort a {thing}") for thing in things] * 32
    trainer = SelfDistillTrainer(encoder, tmp_path / "run", loss=Afar, learning_rate=learning_rate, verbose=False)
    similarity = trainer.fit_triples(rows).encoder.training_summary["similarity"]
    assert (similarity["kept"] < 0.4) == (learning_rate == 1e-2)
    assert caplog.text.count("the encoder forgets what is alike") == (learning_rate == 1e-2)


def test_two_documents_are_too_few_to_see_what_is_forgotten(encoder, tmp_path):
    trainer = SelfDistillTrainer(encoder, tmp_path / "run", verbose=False).fit_triples([("sort", "sort it", "plot it")])
    assert trainer.encoder.training_summary["similarity"]["kept"] is None
