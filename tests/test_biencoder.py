"""The biencoder: its vectors, how models are loaded, and what makes two encoders equal."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex

QUERIES = ["sort rows", "plot", "read a file"]
DOCUMENTS = ["sort the rows of a table by column", "plot a matrix", "read", "write a file and return the mean value"]


def ranking(results):
    return results.sort_values(["qid", "rank"])[["qid", "docno"]].to_numpy().tolist()


# --- encode_queries, encode_docs, encode_queries_torch --------------------------------------------------------------


def test_vectors_are_float32_of_unit_length(encoder):
    for vectors in (encoder.encode_queries(QUERIES), encoder.encode_docs(DOCUMENTS)):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_encode_docs_gives_the_same_vectors_in_any_batches(encoder, batch_size):
    texts = [*DOCUMENTS, "", *DOCUMENTS[::-1]]
    one_by_one = np.concatenate([encoder.encode_docs([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode_docs(texts, batch_size=batch_size), one_by_one, atol=1e-6)


def test_encode_docs_encodes_equal_texts_once_and_like_lengths_together(encoder, monkeypatch):
    counts = []
    forward = encoder.model.forward

    def count(features, **options):
        counts.append(features["attention_mask"].sum(dim=1).tolist())
        return forward(features, **options)

    monkeypatch.setattr(encoder.model, "forward", count)
    encoder.encode_docs([*DOCUMENTS, *DOCUMENTS], batch_size=2)
    assert counts == [[12, 10], [5, 3]]


def test_encode_docs_of_nothing_has_a_dimension(encoder):
    assert encoder.encode_docs([]).shape == (0, encoder.dimension)


def test_encode_queries_torch_gives_gradients(encoder):
    vectors = encoder.encode_queries_torch(QUERIES, batch_size=2)
    np.testing.assert_allclose(vectors.detach().numpy(), encoder.encode_queries(QUERIES), atol=1e-6)
    vectors.sum().backward()
    gradients = [parameter.grad for parameter in encoder.model.parameters() if parameter.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert encoder.encode_queries_torch([]).shape == (0, encoder.dimension)


@pytest.mark.parametrize(("texts", "message"), [("plot", "list of strings"), (["plot", None], r"texts\[1\] is None")])
def test_encode_refuses_what_is_not_a_list_of_strings(encoder, texts, message):
    for encode in (encoder.encode_docs, encoder.encode_queries, encoder.encode_queries_torch):
        with pytest.raises(TypeError, match=message):
            encode(texts)


# --- from_pretrained ------------------------------------------------------------------------------------------------


def test_from_pretrained_pools_the_first_token_of_a_plain_language_model(language_model):
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu")
    features = encoder.model.preprocess(["plot a file"])
    inputs = {name: features[name] for name in ("input_ids", "attention_mask")}
    first = encoder.model[0].model(**inputs).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(first).detach().numpy()
    np.testing.assert_allclose(encoder.encode_docs(["plot a file"]), expected, atol=1e-6)
    mean = SelfDistillBiEncoder.from_pretrained(language_model, pooling="mean", device="cpu")
    assert not np.allclose(mean.encode_docs(["plot a file"]), expected, atol=1e-3)


def test_from_pretrained_keeps_the_layers_of_a_sentence_transformers_model(tiny_model, tmp_path):
    tiny_model.save(str(tmp_path / "model"))
    encoder = SelfDistillBiEncoder.from_pretrained(tmp_path / "model", device="cpu")
    assert encoder.model[1].pooling_mode == "mean"
    with pytest.raises(ValueError, match="layers of its own"):
        SelfDistillBiEncoder.from_pretrained(tmp_path / "model", pooling="cls")


def test_from_pretrained_sets_lengths(language_model):
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, query_length=4, document_length=6, device="cpu")
    assert (encoder.query_length, encoder.document_length) == (4, 6)
    words = ["sort", "the", "rows", "of", "a", "table", "by", "column"]
    longer = " ".join(words)
    for encode, length in [(encoder.encode_queries, 4), (encoder.encode_docs, 6)]:
        # [CLS] and [SEP] count
        cut = " ".join(words[: length - 2])
        np.testing.assert_allclose(encode([longer]), encode([cut]), atol=1e-6)
        assert not np.allclose(encode([longer]), encode([" ".join(words[: length - 3])]), atol=1e-3)


def test_from_pretrained_sets_prompts(language_model):
    plain = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu")
    encoder = SelfDistillBiEncoder.from_pretrained(
        language_model, query_prompt="query: ", document_prompt="d: ", device="cpu"
    )
    queries = encoder.encode_queries(["plot"])
    np.testing.assert_allclose(queries, plain.encode_queries(["query: plot"]), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_queries_torch(["plot"]).detach(), queries, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_docs(["plot"]), plain.encode_docs(["d: plot"]), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_length": 0}, "query_length must be a positive integer.* got 0"),
        ({"query_length": 65}, "query_length must be an integer from 1 to 64, .*got 65"),
        ({"document_length": 65}, "document_length must be an integer from 1 to 64, .*got 65"),
        ({"document_length": True}, "document_length must be a positive integer.* got True"),
        ({"dtype": "int4"}, "dtype must be 'auto', 'float32'.* or 'int8', got 'int4'"),
        ({"dtype": torch.float64}, "dtype must be 'auto'.*got torch.float64"),
        ({"dtype": "floaty"}, "floaty"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": "8"}, "batch_size must be a positive integer, got '8'"),
        ({"pooling": "first"}, "pooling must be 'cls', 'mean'.*got 'first'"),
        ({"query_prompt": 7}, "query_prompt must be a valid string.*got 7"),
        ({"text_field": ""}, "text_field must be the name of a field such as 'text', got ''"),
        ({"verbose": "no"}, "verbose must be a valid boolean, got 'no'"),
        ({"device": 0}, "device must be .*got 0"),
    ],
)
def test_from_pretrained_refuses_bad_options(language_model, options, message):
    with pytest.raises(ValueError, match=message):
        SelfDistillBiEncoder.from_pretrained(language_model, **options)


@pytest.mark.parametrize("name", ["./nothing", "nothing/", "../nothing", "a/b/nothing", "~/nothing", r"C:\\nothing"])
def test_from_pretrained_says_that_there_is_no_folder(name, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    for given in (name, Path(name), str(folder / "nothing")):
        with pytest.raises(FileNotFoundError, match="there is no folder .*nothing'.*or a name on the"):
            SelfDistillBiEncoder.from_pretrained(given)
    with pytest.raises(ValueError, match="name_or_path must be a name on the .*, or the path of a folder, got ''"):
        SelfDistillBiEncoder.from_pretrained("")


@pytest.mark.parametrize("name", ["nothing", "me/nothing"])
def test_from_pretrained_says_what_to_do_without_a_network(name):
    with pytest.raises(OSError, match=f"(?s)'{name}' is no folder, and cannot be loaded .*give the folder") as raised:
        SelfDistillBiEncoder.from_pretrained(name)
    assert not isinstance(raised.value, FileNotFoundError)


def test_paths_may_begin_in_the_home_folder(encoder, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert encoder.copy().save("~/model") == folder / "model"
    assert SelfDistillBiEncoder("~/model").name == str(folder / "model")
    assert SelfDistillBiEncoder.from_pretrained("~/model").name == str(folder / "model")
    encoder.build_retriever([{"docno": "d1", "text": "sort"}], "~/index.flex")
    assert SelfDistillIndex("~/index.flex").built()
    assert {path.name for path in folder.iterdir()} == {"model", "index.flex"}


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda encoder: encoder.encode_docs(["sort"], batch_size=0),
        lambda encoder: encoder.encode_queries(["sort"], batch_size=0),
        lambda encoder: encoder.encode_queries_torch(["sort"], batch_size=0),
        lambda encoder: encoder.query_encoder(batch_size=0),
        lambda encoder: encoder.doc_encoder(batch_size=0),
        lambda encoder: encoder.text_scorer(batch_size=0),
        lambda encoder: SelfDistillBiEncoder(encoder.model, batch_size=0),
    ],
)
def test_batch_sizes_are_checked(encoder, call):
    with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
        call(encoder)


@pytest.mark.parametrize("model", [7, None, ""])
def test_models_are_models_or_folders(model):
    with pytest.raises((TypeError, ValueError), match="model must be .*the path of a folder, got"):
        SelfDistillBiEncoder(model)


# --- equality -------------------------------------------------------------------------------------------------------


def test_encoders_are_equal_if_they_compute_the_same(encoder, language_model):
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


ROLES = {
    "query encoder": lambda encoder: encoder.query_encoder(),
    "document encoder": lambda encoder: encoder.doc_encoder(),
    "scorer": lambda encoder: encoder.scorer(),
}


def test_encoders_and_roles_are_equal_if_all_options_of_the_model_are(language_model):
    options = [
        {},
        {"pooling": "mean"},
        {"query_length": 4},
        {"document_length": 4},
        {"query_prompt": "query: "},
        {"document_prompt": "d: "},
        {"dtype": "bfloat16"},
    ]
    load = SelfDistillBiEncoder.from_pretrained
    encoders = [load(language_model, device="cpu", **given) for given in options]
    again = [load(language_model, device="cpu", **given) for given in options]
    for number, one in enumerate(encoders):
        assert [one == two for two in again] == [number == position for position in range(len(options))]
        assert hash(one) == hash(again[number])
        for role in ROLES.values():
            assert role(one) == role(again[number])
            assert hash(role(one)) == hash(role(again[number]))
            assert role(one) != role(encoders[number - 1])


def test_encoder_is_equal_after_pickling_and_runs_in_parallel(language_model, collection):
    # other processes choose a precision for their own hardware
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype="float32")
    assert pickle.loads(pickle.dumps(encoder)) == encoder
    expected = encoder(collection.results)
    with pytest.warns(UserWarning, match="experimental"):
        parallel = encoder.parallel(2)(collection.results)
    pd.testing.assert_frame_equal(parallel, expected)


def test_repr_tells_encoders_apart_by_name(encoder, language_model, tmp_path):
    assert repr(encoder) == f"SelfDistillBiEncoder({language_model!r}, dtype='float32')"
    path = str(encoder.copy().save(tmp_path / "trained"))
    assert repr(pt.Artifact.load(path)) == f"SelfDistillBiEncoder({path!r})"


def test_cache_path_changes_with_the_weights(encoder):
    before = encoder.cache_path("caches/scores.cache")
    with torch.no_grad():
        next(encoder.model.parameters()).add_(0.1)
    after = encoder.cache_path("caches/scores.cache")
    assert before != after
    assert before.parent == after.parent
    assert after.suffix == ".cache"


# --- build_retriever ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [list, iter, pd.DataFrame])
def test_build_retriever_indexes_any_corpus(encoder, collection, tmp_path, form):
    topics, records = collection.topics, collection.records
    retriever = encoder.build_retriever(form(records), tmp_path / "index.flex", num_results=3)
    found = retriever(topics)
    assert found.groupby("qid").size().unique().tolist() == [3]
    assert ranking(found) == ranking(((encoder >> SelfDistillIndex(tmp_path / "index.flex")) % 3)(topics))
    with pytest.raises(FileExistsError, match="already"):
        encoder.build_retriever(form(records), tmp_path / "index.flex")
    encoder.build_retriever(form(records[:2]), tmp_path / "index.flex", overwrite=True)
    assert len(SelfDistillIndex(tmp_path / "index.flex")) == 2


def test_build_retriever_joins_fields(encoder, collection, tmp_path):
    things = collection.things
    corpus = [{"docno": thing, "title": "plot", "body": f"a {thing}"} for thing in things]
    retriever = encoder.build_retriever(corpus, tmp_path / "index.flex", fields=["title", "body"])
    vectors = retriever[1].index.np_vecs()
    np.testing.assert_allclose(vectors, encoder.encode_docs([f"plot a {thing}" for thing in things]), atol=1e-6)


GOOD = {"docno": "d1", "text": "sort"}


@pytest.mark.parametrize(
    ("corpus", "options", "error", "message"),
    [
        ([GOOD, {"docno": "d2"}], {}, ValueError, "'text' missing"),
        ([GOOD, {"text": "plot"}], {}, ValueError, "'docno' missing"),
        ([GOOD, {"docno": "d2", "text": None}], {}, TypeError, "'d2' must have a string in 'text'"),
        ([GOOD, {"docno": 2, "text": "plot"}], {}, TypeError, "docno must be a string, got 2"),
        ([GOOD, GOOD], {}, ValueError, "duplicate docno 'd1'"),
        ([], {}, ValueError, "there are no documents to index"),
        ([GOOD], {"fields": ["title"]}, ValueError, "'title' missing"),
        ([GOOD], {"fields": "text"}, ValueError, "fields must be a list of field names"),
        ([GOOD], {"fields": []}, ValueError, "fields must be a list of field names"),
        ([GOOD], {"num_results": 0}, ValueError, "num_results must be a positive integer, got 0"),
        ([GOOD], {"overwrite": "yes"}, ValueError, "overwrite must be a valid boolean, got 'yes'"),
    ],
)
def test_build_retriever_leaves_nothing_of_an_error(encoder, tmp_path, corpus, options, error, message):
    with pytest.raises(error, match=message):
        encoder.build_retriever(corpus, tmp_path / "index.flex", **options)
    assert not list(tmp_path.iterdir())


def test_build_retriever_refuses_before_it_encodes(encoder, tmp_path, monkeypatch):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    monkeypatch.setattr(encoder.model, "forward", None)
    for overwrite, message in {False: "already", True: "holds thesis.tex"}.items():
        with pytest.raises(FileExistsError, match=message):
            encoder.build_retriever([GOOD], tmp_path / "thesis", overwrite=overwrite)
