"""The steps of an encoder: queries, documents and results by their columns, and the pipelines that it leads."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier_dr import FlexIndex

from pyterrier_selfdistill import EncoderMismatchError, SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer


def test_steps_conform_to_pyterrier(encoder, conforms):
    for transformer in (encoder, encoder.query_encoder(), encoder.doc_encoder(), encoder.text_scorer()):
        conforms(transformer)


# --- queries and documents ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["frame", "list", "iterable"])
@pytest.mark.parametrize("role", ["query", "doc"])
def test_texts_are_encoded_by_their_columns(encoder, collection, role, form):
    frame, texts = (collection.topics, "query") if role == "query" else (collection.corpus, "text")
    expected = (encoder.model.encode_query if role == "query" else encoder.model.encode_document)(list(frame[texts]))
    records = frame.to_dict(orient="records")
    encoded = encoder({"frame": frame, "list": records, "iterable": iter(records)}[form])
    assert isinstance(encoded, pd.DataFrame if form == "frame" else list)
    encoded = pd.DataFrame(encoded)
    assert list(encoded.columns) == [*frame.columns, f"{role}_vec"]
    vectors = encoded[f"{role}_vec"]
    assert {(vector.dtype, vector.shape) for vector in vectors} == {(np.dtype(np.float32), (32,))}
    assert {vector.encoder for vector in vectors} == {encoder.identity}
    np.testing.assert_allclose(np.stack(vectors), expected, atol=1e-6)


def test_text_may_be_in_another_field(language_model, collection):
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, text_field="body", device="cpu")
    assert "doc_vec" in encoder(collection.corpus.rename(columns={"text": "body"}))


def test_empty_frames_keep_types(encoder, collection):
    for frame in (collection.topics, collection.corpus, collection.results):
        whole, nothing = encoder(frame.assign(note=1)), encoder(frame.assign(note=1).iloc[:0])
        assert len(nothing) == 0
        assert list(nothing.columns) == list(whole.columns)
        assert [dtype.kind for dtype in nothing.dtypes] == [dtype.kind for dtype in whole.dtypes]


def test_progress_is_shown_if_asked(encoder, collection, capsys):
    corpus = collection.corpus
    encoder.doc_encoder(verbose=True)(pd.concat([corpus, corpus]))
    assert "80/80" in capsys.readouterr().err
    encoder.doc_encoder()(corpus)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        ({"docno": ["d1", "d2"], "text": ["plot", None]}, TypeError, "'text' .*1 of 2 rows.*'d2'"),
        ({"docno": ["d1"], "text": [5]}, TypeError, "'d1': 5"),
        ({"docno": ["d1", "d2"], "text": ["plot", "\ud800"]}, (TypeError, ValueError), "ud800"),
        ({"qid": ["1", "2"], "query": [float("nan"), "plot"]}, TypeError, "'query' .*1 of 2 rows.*'1'"),
        ({"qid": ["1"], "docno": ["d1"], "query": ["plot"], "text": [["a"]]}, TypeError, "'text'"),
        ({"docno": ["d1"], "title": ["plot"]}, pt.validate.InputValidationError, "text"),
    ],
)
def test_what_is_not_text_is_refused(encoder, frame, error, message):
    with pytest.raises(error, match=message):
        encoder(pd.DataFrame(frame, dtype=object))


def test_duplicate_columns_are_refused(encoder, collection):
    with pytest.raises(ValueError, match="'text'"):
        encoder(pd.concat([collection.corpus, collection.corpus["text"]], axis=1))


# --- results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", ["query", "query_vec", "both"])
@pytest.mark.parametrize("documents", ["text", "doc_vec", "both"])
def test_results_are_scored_by_any_mix_of_texts_and_vectors(encoder, collection, queries, documents):
    results = collection.results
    full = encoder.doc_encoder()(encoder.query_encoder()(results))
    counterpart = {"query": "query_vec", "query_vec": "query", "text": "doc_vec", "doc_vec": "text"}
    given = full.drop(columns=[counterpart[name] for name in (queries, documents) if name != "both"])
    scored = encoder(given)
    assert set(scored.columns) == {*given.columns, "score", "rank"}
    assert scored[["qid", "docno"]].equals(results[["qid", "docno"]])
    vectors = encoder.model.encode_query(list(collection.topics["query"]))
    cosines = vectors @ encoder.model.encode_document(list(collection.corpus["text"])).T
    np.testing.assert_allclose(scored["score"], cosines.reshape(-1), atol=1e-6)
    for _, group in scored.groupby("qid"):
        assert sorted(group["rank"]) == list(range(40))
        assert group.sort_values("rank")["score"].is_monotonic_decreasing


def test_vectors_of_this_encoder_are_taken_and_those_of_others_are_not(encoder, other, collection):
    encoded = encoder.doc_encoder()(encoder.query_encoder()(collection.results))
    # texts that would give other scores, if they were encoded again
    swapped = encoder(encoded.assign(query="d", text="d"))
    np.testing.assert_allclose(swapped["score"], encoder(collection.results)["score"], atol=1e-6)
    scored = other(encoded)
    np.testing.assert_allclose(scored["score"], other(collection.results)["score"], atol=1e-6)
    # the vectors that were given are given on
    assert {vector.encoder for vector in scored["query_vec"]} == {encoder.identity}
    for texts, vectors in {"query": "query_vec", "text": "doc_vec"}.items():
        with pytest.raises(EncoderMismatchError, match=f"{vectors} .*'{texts}'"):
            other(encoded.drop(columns=texts))


@pytest.mark.parametrize("name", ["qid", "docno"])
def test_the_index_of_a_frame_may_be_named_as_a_column(encoder, collection, name):
    results = collection.results
    named = results.set_axis(pd.Index([0] * len(results), name=name))[::-1]
    expected = encoder(results[::-1].reset_index(drop=True))
    pd.testing.assert_frame_equal(encoder(named).reset_index(drop=True), expected.reset_index(drop=True))


def test_vectors_of_another_length_and_queries_without_identifier_are_refused(encoder, collection):
    vectors = [np.ones(3, dtype=np.float32)] * len(collection.results)
    for column in ("query_vec", "doc_vec"):
        with pytest.raises(ValueError, match=f"{column} has 3 dimensions.* 32"):
            encoder(collection.results.assign(**{column: vectors}))
    with pytest.raises(TypeError, match="qid .*None"):
        encoder(collection.results.assign(qid=None))


# --- pipelines that begin with an encoder ---------------------------------------------------------------------------


@pytest.fixture
def steps(encoder, index, tmp_path):
    """All that may stand in a pipeline, by name."""
    return {
        "encoder": encoder,
        "query encoder": encoder.query_encoder(),
        "document encoder": encoder.doc_encoder(),
        "scorer": encoder.scorer(),
        "trainer": SelfDistillTrainer(encoder, tmp_path / "run"),
        "index": index,
        "indexer": index.indexer(),
        "retriever": index.retriever(num_results=3),
        "vector loader": index.vec_loader(),
        "cut-off": pt.RankCutoff(2),
        "identity": pt.Transformer.identity(),
        "pipeline": pt.RankCutoff(7) >> pt.RankCutoff(5),
        "encoder pipeline": encoder >> pt.RankCutoff(9),
    }


def test_pipelines_are_equal_however_they_are_put_together(steps):
    ours = ["encoder", "document encoder", "encoder pipeline", "index", "retriever", "trainer"]
    others = ["encoder", "query encoder", "retriever", "indexer", "cut-off", "identity", "pipeline", "encoder pipeline"]
    for first in ours:
        for second in others:
            for third in others:
                for names in [(first, second, third), (second, first, third), (second, third, first)]:
                    a, b, c = [steps[name] for name in names]
                    from_left, from_right = (a >> b) >> c, a >> (b >> c)
                    assert type(from_left) is type(from_right), names
                    # equal steps are often the same object: comparing encoders computes checksums
                    assert len(from_left) == len(from_right), names
                    pairs = zip(from_left, from_right, strict=True)
                    assert all(one is two or one == two for one, two in pairs), names
                    assert not any(isinstance(step, pt.Compose) for step in from_left), names


def test_a_pipeline_does_what_pyterriers_does(steps, collection, conforms):
    pipeline = steps["encoder"] >> (steps["retriever"] >> steps["cut-off"])
    same = pt.Compose(steps["encoder"], steps["retriever"], steps["cut-off"])
    assert pipeline == same
    pd.testing.assert_frame_equal(pipeline(collection.topics), same(collection.topics))
    assert pipeline.compile() == same.compile()
    conforms(steps["encoder"] >> steps["retriever"])


def test_a_pipeline_lists_inputs_that_lead_somewhere(steps):
    assert pt.inspect.transformer_inputs(steps["encoder"] >> steps["index"]) == [["qid", "query"]]


DOCUMENTS = [{"docno": str(number), "text": "plot " * (1 + number % 7)} for number in range(500)]

PIPELINES = {
    "encoder >> index": (lambda e, x, i: e >> i, 500),
    "(encoder >> x) >> index": (lambda e, x, i: (e >> x) >> i, 500),
    "encoder >> (x >> index)": (lambda e, x, i: e >> (x >> i), 500),
    "(document encoder >> x) >> index": (lambda e, x, i: (e.doc_encoder() >> x) >> i, 500),
    "document encoder >> (x >> index)": (lambda e, x, i: e.doc_encoder() >> (x >> i), 500),
    # PyTerrier makes these, whose first step knows nothing of encoders
    "x >> (encoder >> index)": (lambda e, x, i: x >> (e >> i), 100),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_documents_are_read_ahead_where_an_encoder_stands_first(encoder, tmp_path, name):
    make, read_at_once = PIPELINES[name]
    sizes = []
    counting = pt.apply.generic(lambda frame: sizes.append(len(frame)) or frame)
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    make(encoder, counting, index).index(iter(DOCUMENTS))
    assert not sizes or max(sizes) == read_at_once
    assert list(index.docnos()) == [document["docno"] for document in DOCUMENTS]
    np.testing.assert_allclose(index.np_vecs(), encoder.encode_docs([doc["text"] for doc in DOCUMENTS]), atol=1e-6)


def test_as_many_documents_are_read_as_index_is_told(encoder, tmp_path):
    sizes = []
    counting = pt.apply.generic(lambda frame: sizes.append(len(frame)) or frame)
    index = FlexIndex(str(tmp_path / "plain.flex"), verbose=False)
    (encoder.doc_encoder() >> counting >> index).index(DOCUMENTS, batch_size=200)
    assert sizes == [200, 200, 100]
