"""The biencoder: roles, vectors, errors, and the folder that three libraries read."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_dr
import pytest
import torch
from pyterrier_dr import FlexIndex
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import SelfDistillBiEncoder

QUERIES = ["sort rows", "plot", "read a file"]
DOCUMENTS = ["sort the rows of a table by column", "plot a matrix", "read", "write a file and return the mean value"]


@pytest.fixture
def topics():
    return pd.DataFrame({"qid": ["1", "2", "3"], "query": QUERIES})


@pytest.fixture
def corpus():
    return pd.DataFrame({"docno": ["d1", "d2", "d3", "d4"], "text": DOCUMENTS})


@pytest.fixture
def results(topics, corpus):
    return topics.merge(corpus, how="cross")


def test_query_encoder_by_columns(encoder, topics):
    out = encoder(topics)
    assert list(out.columns) == ["qid", "query", "query_vec"]
    np.testing.assert_allclose(np.stack(out["query_vec"]), encoder.model.encode_query(QUERIES), atol=1e-6)


def test_document_encoder_by_columns(encoder, corpus):
    out = encoder(corpus)
    assert list(out.columns) == ["docno", "text", "doc_vec"]
    np.testing.assert_allclose(np.stack(out["doc_vec"]), encoder.model.encode_document(DOCUMENTS), atol=1e-6)


def test_scorer_by_columns(encoder, results):
    out = encoder(results)
    cosines = encoder.model.encode_query(QUERIES) @ encoder.model.encode_document(DOCUMENTS).T
    np.testing.assert_allclose(out["score"], cosines.reshape(-1), atol=1e-6)
    for _, group in out.groupby("qid"):
        assert group.sort_values("score", ascending=False)["rank"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("given", [("query_vec",), ("doc_vec",), ("query_vec", "doc_vec")])
def test_scorer_takes_vectors_that_are_there(encoder, results, given):
    expected = encoder(results)["score"]
    if "query_vec" in given:
        results = encoder.query_encoder()(results).drop(columns="query")
    if "doc_vec" in given:
        results = encoder.doc_encoder()(results).drop(columns="text")
    np.testing.assert_allclose(encoder(results)["score"], expected, atol=1e-6)


def test_vectors_are_float32_of_unit_length(encoder):
    for vectors in (encoder.encode_queries(QUERIES), encoder.encode_docs(DOCUMENTS)):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_bfloat16_weights_give_float32_unit_vectors(language_model):
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype="bfloat16")
    assert next(encoder.model.parameters()).dtype == torch.bfloat16
    vectors = encoder.encode_docs(DOCUMENTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_order_does_not_depend_on_batches(encoder, batch_size):
    texts = [*DOCUMENTS, "", *DOCUMENTS[::-1]]
    one_by_one = np.concatenate([encoder.encode_docs([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode_docs(texts, batch_size=batch_size), one_by_one, atol=1e-6)


def test_equal_texts_are_encoded_once_and_like_lengths_together(encoder, monkeypatch):
    seen = []
    encode = encoder.model.encode_document
    monkeypatch.setattr(
        encoder.model, "encode_document", lambda texts, **options: seen.append(texts) or encode(texts, **options)
    )
    encoder.encode_docs([*DOCUMENTS, *DOCUMENTS], batch_size=2)
    assert [text for batch in seen for text in batch] == sorted(DOCUMENTS, key=len, reverse=True)
    assert [len(batch) for batch in seen] == [2, 2]


def test_gradients(encoder):
    vectors = encoder.encode_queries_torch(QUERIES, batch_size=2)
    np.testing.assert_allclose(vectors.detach().numpy(), encoder.encode_queries(QUERIES), atol=1e-6)
    vectors.sum().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in encoder.model.parameters() if parameter.grad is not None)
    assert encoder.encode_queries_torch([]).shape == (0, encoder.dimension)


def test_empty_frames(encoder, topics, corpus, results):
    for frame, columns in [(topics, ["query_vec"]), (corpus, ["doc_vec"]), (results, ["score", "rank"])]:
        out = encoder(frame.iloc[:0])
        assert list(out.columns) == [*frame.columns, *columns]
        assert len(out) == 0
    assert encoder.encode_docs([]).shape == (0, encoder.dimension)


def test_progress_bar_counts_texts(encoder, corpus, capsys):
    encoder.doc_encoder(verbose=True)(pd.concat([corpus, corpus]))
    assert "8/8" in capsys.readouterr().err
    encoder.doc_encoder()(corpus)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (
            {"docno": ["d1", "d2"], "text": ["plot", None]},
            TypeError,
            "'text' must hold a string.* in 1 of 2 rows.*'d2'.*get_text",
        ),
        ({"docno": ["d1"], "text": [5]}, TypeError, "'d1': 5"),
        (
            {"qid": ["1", "2"], "query": [float("nan"), "plot"]},
            TypeError,
            "'query' must hold .* in 1 of 2 rows.*'1'",
        ),
        ({"qid": ["1"], "docno": ["d1"], "query": ["plot"], "text": [["a"]]}, TypeError, "'text' must hold a string"),
        ({"docno": ["d1"], "title": ["plot"]}, pt.validate.InputValidationError, "text"),
    ],
)
def test_bad_frames(encoder, frame, error, message):
    with pytest.raises(error, match=message):
        encoder(pd.DataFrame(frame))


def test_duplicate_columns(encoder, corpus):
    with pytest.raises(ValueError, match="the input frame must have distinct columns, got \\['text'\\]"):
        encoder(pd.concat([corpus, corpus["text"]], axis=1))


@pytest.mark.parametrize(("texts", "message"), [("plot", "list of strings"), (["plot", None], r"texts\[1\] is None")])
def test_bad_lists(encoder, texts, message):
    for encode in (encoder.encode_docs, encoder.encode_queries, encoder.encode_queries_torch):
        with pytest.raises(TypeError, match=message):
            encode(texts)


def test_other_text_field(language_model, corpus):
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, text_field="body", device="cpu")
    assert "doc_vec" in encoder(corpus.rename(columns={"text": "body"}))


def test_plain_language_model_pools_its_first_token(language_model):
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu")
    features = encoder.model.preprocess(["plot a file"])
    first = encoder.model[0].model(**{k: features[k] for k in ("input_ids", "attention_mask")}).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(first).detach().numpy()
    np.testing.assert_allclose(encoder.encode_docs(["plot a file"]), expected, atol=1e-6)
    mean = SelfDistillBiEncoder.from_pretrained(language_model, pooling="mean", device="cpu")
    assert not np.allclose(mean.encode_docs(["plot a file"]), expected, atol=1e-3)


def test_sentence_transformers_model_keeps_its_modules(tiny_model, tmp_path):
    tiny_model.save(str(tmp_path / "model"))
    encoder = SelfDistillBiEncoder.from_pretrained(tmp_path / "model", device="cpu")
    assert encoder.model[1].pooling_mode == "mean"
    with pytest.raises(ValueError, match="layers of its own"):
        SelfDistillBiEncoder.from_pretrained(tmp_path / "model", pooling="cls")


def test_lengths(language_model):
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, query_length=4, document_length=6, device="cpu")
    assert (encoder.query_length, encoder.document_length) == (4, 6)
    words = ["sort", "the", "rows", "of", "a", "table", "by", "column"]
    for encode, length in [(encoder.encode_queries, 4), (encoder.encode_docs, 6)]:
        cut, longer = " ".join(words[: length - 2]), " ".join(words)  # [CLS] and [SEP] count
        np.testing.assert_allclose(encode([longer]), encode([cut]), atol=1e-6)
        assert not np.allclose(encode([longer]), encode([" ".join(words[: length - 3])]), atol=1e-3)


def test_prompts(language_model):
    plain = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu")
    encoder = SelfDistillBiEncoder.from_pretrained(
        language_model, query_prompt="query: ", document_prompt="d: ", device="cpu"
    )
    np.testing.assert_allclose(encoder.encode_queries(["plot"]), plain.encode_queries(["query: plot"]), atol=1e-6)
    np.testing.assert_allclose(
        encoder.encode_queries_torch(["plot"]).detach(), encoder.encode_queries(["plot"]), atol=1e-6
    )
    np.testing.assert_allclose(encoder.encode_docs(["plot"]), plain.encode_docs(["d: plot"]), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_length": 0}, "an integer from 1 to 64"),
        ({"document_length": 65}, "an integer from 1 to 64"),
        ({"document_length": True}, "an integer from 1 to 64"),
        ({"dtype": "int8"}, "int8"),
        ({"dtype": "floaty"}, "floaty"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
    ],
)
def test_bad_options(language_model, options, message):
    with pytest.raises(ValueError, match=message):
        SelfDistillBiEncoder.from_pretrained(language_model, **options)


def test_three_readers_give_the_same_vectors(encoder, tmp_path):
    encoder.training_summary = {"seed": 7}
    path = encoder.save(tmp_path / "my.model")
    loaded = pt.Artifact.load(str(path))
    assert isinstance(loaded, SelfDistillBiEncoder)
    assert loaded.training_summary == {"seed": 7}
    vectors = encoder.encode_docs(DOCUMENTS), encoder.encode_queries(QUERIES)
    sbert = pyterrier_dr.SBertBiEncoder(str(path))
    st = SentenceTransformer(str(path))
    for documents, queries in [
        (loaded.encode_docs(DOCUMENTS), loaded.encode_queries(QUERIES)),
        (sbert.encode_docs(DOCUMENTS), sbert.encode_queries(QUERIES)),
        (st.encode_document(DOCUMENTS), st.encode_query(QUERIES)),
    ]:
        np.testing.assert_allclose(documents, vectors[0], atol=1e-6)
        np.testing.assert_allclose(queries, vectors[1], atol=1e-6)


def test_names_tell_encoders_apart(encoder, language_model, tmp_path):
    assert repr(encoder) == f"SelfDistillBiEncoder({language_model!r})"
    trained = encoder.copy()
    path = str(trained.save(tmp_path / "trained"))
    assert repr(trained) == repr(pt.Artifact.load(path)) == f"SelfDistillBiEncoder({path!r})"


def test_pickled_and_parallel(encoder, results):
    assert pickle.loads(pickle.dumps(encoder)) == encoder
    expected = encoder(results)
    with pytest.warns(UserWarning, match="experimental"):
        parallel = encoder.parallel(2)(results)
    pd.testing.assert_frame_equal(parallel, expected)


def test_lengths_and_prompts_survive_saving(language_model, tmp_path):
    encoder = SelfDistillBiEncoder.from_pretrained(
        language_model, query_length=4, document_length=6, query_prompt="query: ", device="cpu"
    )
    path = encoder.save(tmp_path / "model")
    loaded = pt.Artifact.load(str(path))
    assert (loaded.query_length, loaded.document_length) == (4, 6)
    long = ["sort the rows of a table by column"]
    np.testing.assert_allclose(loaded.encode_queries(long), encoder.encode_queries(long), atol=1e-6)
    np.testing.assert_allclose(
        SentenceTransformer(str(path)).encode_query(long), encoder.encode_queries(long), atol=1e-6
    )
    sbert = pyterrier_dr.SBertBiEncoder(str(path))
    np.testing.assert_allclose(sbert.encode_docs(long), encoder.encode_docs(long), atol=1e-6)


def test_saved_folder(encoder, tmp_path):
    path = encoder.save(tmp_path / "deep" / "model")
    metadata = json.loads((path / "pt_meta.json").read_text())
    assert (metadata["type"], metadata["format"]) == ("biencoder", "selfdistill")
    assert (path / "model.safetensors").is_file()
    assert [entry.name for entry in path.parent.iterdir()] == ["model"]


def test_save_does_not_replace_unasked(encoder, tmp_path):
    path = encoder.save(tmp_path / "model")
    (path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        encoder.save(path)
    assert (path / "mine.txt").exists()
    encoder.save(path, overwrite=True)
    assert not (path / "mine.txt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_failed_save_keeps_what_was_there(encoder, tmp_path, monkeypatch):
    path = encoder.save(tmp_path / "model")
    before = (path / "model.safetensors").read_bytes()

    def fail(folder, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(encoder.model, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        encoder.save(path, overwrite=True)
    assert (path / "model.safetensors").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_killed_save_leaves_no_folder_of_that_name(language_model, tmp_path):
    program = """
import sys, time
from pyterrier_selfdistill import SelfDistillBiEncoder
encoder = SelfDistillBiEncoder.from_pretrained(sys.argv[1], device="cpu")
save = encoder.model.save_pretrained
def slow(folder, **options):
    save(folder, **options)
    print("saving", flush=True)
    time.sleep(60)
encoder.model.save_pretrained = slow
encoder.save(sys.argv[2])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, language_model, str(tmp_path / "model")],
        stdout=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout.readline().strip() == b"saving"
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob("*/pt_meta.json"))


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="from_pretrained"):
        SelfDistillBiEncoder.load(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"modules\.json"):
        SelfDistillBiEncoder(tmp_path)


def test_equality_is_by_what_is_computed(encoder, language_model):
    other = encoder.copy()
    assert other == encoder
    assert hash(other) == hash(encoder)
    assert other.query_encoder() == encoder.query_encoder()
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    assert other != encoder
    assert other.query_encoder() != encoder.query_encoder()
    shorter = SelfDistillBiEncoder.from_pretrained(language_model, document_length=5, device="cpu")
    prompted = SelfDistillBiEncoder.from_pretrained(language_model, query_prompt="query: ", device="cpu")
    assert len({encoder, shorter, prompted, other}) == 4


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"fused": False, "foreach": False}])
def test_name_follows_every_step_of_training(encoder, options):
    parameters = [p for p in encoder.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, **options)
    names = {encoder.model_name}
    for _ in range(3):
        encoder.encode_queries_torch(QUERIES).sum().backward()
        optimizer.step()
        names.add(encoder.model_name)
    assert len(names) == 4


def test_index_and_search(encoder, corpus, topics, tmp_path):
    index = FlexIndex(str(tmp_path / "index.flex"), verbose=False)
    (encoder >> index).index(corpus.to_dict(orient="records"))
    found = (encoder >> index)(topics)
    scored = encoder(topics.merge(corpus, how="cross"))
    merged = found.merge(scored, on=["qid", "docno"])
    assert len(merged) == 12
    np.testing.assert_allclose(merged["score_x"], merged["score_y"], atol=1e-6)


EncoderConformance = pt.testing.transformer_test_class(lambda: _conforming(lambda e: e))
QueryEncoderConformance = pt.testing.transformer_test_class(lambda: _conforming(lambda e: e.query_encoder()))
DocEncoderConformance = pt.testing.transformer_test_class(lambda: _conforming(lambda e: e.doc_encoder()))
ScorerConformance = pt.testing.transformer_test_class(lambda: _conforming(lambda e: e.text_scorer()))
_model_folder = None


@pytest.fixture(autouse=True, scope="module")
def _keep_model_folder(language_model):
    global _model_folder
    _model_folder = language_model


def _conforming(role):
    return role(SelfDistillBiEncoder.from_pretrained(_model_folder, device="cpu"))
