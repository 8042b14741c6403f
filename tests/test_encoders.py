"""The roles of an encoder in pipelines, and the pipelines that it leads."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier_dr import FlexIndex

from pyterrier_selfdistill import EncoderMismatchError, SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer
from pyterrier_selfdistill.encoder.steps import READ_AHEAD, EncoderPipeline, encode

# --- QueryEncoder and DocumentEncoder -------------------------------------------------------------------------------


def test_encoder_encodes_queries_by_their_columns(encoder, collection):
    topics = collection.topics
    out = encoder(topics)
    assert list(out.columns) == ["qid", "query", "query_vec"]
    expected = encoder.model.encode_query(topics["query"].tolist())
    np.testing.assert_allclose(np.stack(out["query_vec"]), expected, atol=1e-6)


def test_encoder_encodes_documents_by_their_columns(encoder, collection):
    corpus = collection.corpus
    out = encoder(corpus)
    assert list(out.columns) == ["docno", "text", "doc_vec"]
    expected = encoder.model.encode_document(corpus["text"].tolist())
    np.testing.assert_allclose(np.stack(out["doc_vec"]), expected, atol=1e-6)


@pytest.mark.parametrize("form", ["frame", "list", "iterable"])
def test_encoder_takes_frames_lists_and_iterables(encoder, collection, form):
    topics = collection.topics
    records = topics.to_dict(orient="records")
    given = {"frame": topics, "list": records, "iterable": iter(records)}[form]
    encoded = encoder(given)
    assert isinstance(encoded, pd.DataFrame if form == "frame" else list)
    encoded = pd.DataFrame(encoded)
    assert list(encoded.columns) == ["qid", "query", "query_vec"]
    assert encoded["query_vec"].dtype == object
    assert {(vector.dtype, vector.shape) for vector in encoded["query_vec"]} == {(np.dtype(np.float32), (32,))}
    np.testing.assert_allclose(np.stack(encoded["query_vec"]), encoder.encode_queries(topics["query"]), atol=1e-6)


def test_encoder_takes_another_text_field(language_model, collection):
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, text_field="body", device="cpu")
    assert "doc_vec" in encoder(collection.corpus.rename(columns={"text": "body"}))


def test_encoder_adds_columns_to_empty_frames(encoder, collection):
    cases = [
        (collection.topics, ["query_vec"]),
        (collection.corpus, ["doc_vec"]),
        (collection.results, ["score", "rank"]),
    ]
    for frame, columns in cases:
        out = encoder(frame.iloc[:0])
        assert list(out.columns) == [*frame.columns, *columns]
        assert len(out) == 0


def test_doc_encoder_shows_a_progress_bar_if_asked(encoder, collection, capsys):
    corpus = collection.corpus
    encoder.doc_encoder(verbose=True)(pd.concat([corpus, corpus]))
    assert "80/80" in capsys.readouterr().err
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
def test_encoder_refuses_what_is_not_text(encoder, frame, error, message):
    with pytest.raises(error, match=message):
        encoder(pd.DataFrame(frame))


def test_encoder_refuses_duplicate_columns(encoder, collection):
    corpus = collection.corpus
    with pytest.raises(ValueError, match="the input frame must have distinct columns, got \\['text'\\]"):
        encoder(pd.concat([corpus, corpus["text"]], axis=1))


# --- Scorer ---------------------------------------------------------------------------------------------------------


def test_encoder_scores_results_by_their_columns(encoder, collection):
    out = encoder(collection.results)
    queries = encoder.model.encode_query(collection.topics["query"].tolist())
    documents = encoder.model.encode_document(collection.corpus["text"].tolist())
    np.testing.assert_allclose(out["score"], (queries @ documents.T).reshape(-1), atol=1e-6)
    for _, group in out.groupby("qid"):
        assert group.sort_values("score", ascending=False)["rank"].tolist() == list(range(len(group)))


@pytest.mark.parametrize("queries", ["query", "query_vec", "both"])
@pytest.mark.parametrize("documents", ["text", "doc_vec", "both"])
def test_scorer_takes_any_mix_of_texts_and_vectors(encoder, collection, queries, documents):
    results = collection.results
    full = encoder.doc_encoder()(encoder.query_encoder()(results))
    counterpart = {"query": "query_vec", "query_vec": "query", "text": "doc_vec", "doc_vec": "text"}
    given = full.drop(columns=[counterpart[name] for name in (queries, documents) if name != "both"])
    scored = encoder(given)
    assert set(given.columns) | {"score", "rank"} == set(scored.columns)
    assert scored[["qid", "docno"]].equals(results[["qid", "docno"]])
    cosines = encoder.encode_queries(collection.topics["query"]) @ encoder.encode_docs(collection.corpus["text"]).T
    np.testing.assert_allclose(scored["score"], cosines.reshape(-1), atol=1e-6)
    np.testing.assert_allclose(scored["score"], encoder(results)["score"], atol=1e-6)
    for _, group in scored.groupby("qid"):
        assert sorted(group["rank"]) == list(range(40))
        assert group.sort_values("rank")["score"].is_monotonic_decreasing


def test_scorer_encodes_texts_where_vectors_are_of_another_encoder(encoder, other, collection):
    expected = other(collection.results)
    encoded = encoder.doc_encoder()(encoder.query_encoder()(collection.results))
    scored = other(encoded)
    np.testing.assert_allclose(scored["score"], expected["score"], atol=1e-6)
    # what it was given, it gives on
    assert scored["query_vec"][0].encoder == encoder.identity


@pytest.mark.parametrize(("texts", "vectors"), [("query", "query_vec"), ("text", "doc_vec")])
def test_scorer_refuses_vectors_of_another_encoder_without_texts(encoder, other, collection, texts, vectors):
    encoded = encoder.doc_encoder()(encoder.query_encoder()(collection.results))
    with pytest.raises(EncoderMismatchError, match=f"{vectors} was made by .*no '{texts}' to encode"):
        other(encoded.drop(columns=texts))


@pytest.mark.parametrize("name", ["qid", "docno"])
def test_scorer_takes_frames_whose_index_is_named_as_a_column(encoder, collection, name):
    results = collection.results
    named = results.set_axis(pd.Index([0] * len(results), name=name))[::-1]
    expected = encoder(results[::-1].reset_index(drop=True))
    pd.testing.assert_frame_equal(encoder(named).reset_index(drop=True), expected.reset_index(drop=True))


def test_scorer_names_vectors_of_another_length(encoder, collection):
    vectors = [np.ones(3, dtype=np.float32)] * len(collection.results)
    for column in ("query_vec", "doc_vec"):
        with pytest.raises(ValueError, match=f"{column} has 3 dimensions, and the vectors of this encoder have 32"):
            encoder(collection.results.assign(**{column: vectors}))


def test_scorer_names_queries_without_identifier(encoder, collection):
    with pytest.raises(TypeError, match="the qid of the results must be a string, got .None"):
        encoder(collection.results.assign(qid=None))


def test_roles_conform_to_pyterrier(encoder, conforms):
    for transformer in (encoder, encoder.query_encoder(), encoder.doc_encoder(), encoder.text_scorer()):
        conforms(transformer)


# --- encode ---------------------------------------------------------------------------------------------------------


def test_encode_encodes_distinct_texts_once_those_of_like_length_together(encoder, monkeypatch):
    texts = ["plot", "sort the rows of a table by column", "plot", "plot a matrix", "plot a file"]
    batches = []
    forward = encoder.model.forward

    def record(features, **options):
        batches.append(features["attention_mask"].sum(dim=1).tolist())
        return forward(features, **options)

    with monkeypatch.context() as patch:
        patch.setattr(encoder.model, "forward", record)
        vectors = encode(encoder.model, texts, "document", batch_size=2)
    assert batches == [[10, 5], [5, 3]]
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(vectors, encoder.model.encode_document(texts), atol=1e-6)


def test_encode_gives_the_dimensions_that_the_model_is_cut_to(tiny_model):
    tiny_model.truncate_dim = 8
    vectors = encode(tiny_model, ["plot", "sort rows"], "query", batch_size=2)
    expected = tiny_model.encode_query(["plot", "sort rows"], normalize_embeddings=False)
    np.testing.assert_allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


# --- EncoderPipeline: the law of >> ---------------------------------------------------------------------------------


@pytest.fixture
def steps(encoder, tmp_path):
    """All that may stand in a pipeline, by name."""
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (encoder >> index).index([{"docno": str(number), "text": f"plot {number}"} for number in range(5)])
    return {
        "encoder": encoder,
        "query encoder": encoder.query_encoder(),
        "document encoder": encoder.doc_encoder(),
        "scorer": encoder.scorer(),
        "trainer": SelfDistillTrainer(encoder, tmp_path / "run"),
        "index": index,
        "indexer": index.indexer(),
        "retriever": index.retriever(num_results=3),
        "index scorer": index.scorer(),
        "vector loader": index.vec_loader(),
        "cut-off": pt.RankCutoff(2),
        "identity": pt.Transformer.identity(),
        "pipeline": pt.RankCutoff(7) >> pt.RankCutoff(5),
        "encoder pipeline": encoder >> pt.RankCutoff(9),
    }


OURS = ["encoder", "query encoder", "document encoder", "scorer", "trainer", "index", "retriever", "encoder pipeline"]


@pytest.mark.parametrize("ours", OURS)
def test_rshift_is_associative(steps, ours):
    """Wherever it stands among two others, the pipeline is the same, however it is put together."""
    for second in steps:
        for third in steps:
            for names in [(ours, second, third), (second, ours, third), (second, third, ours)]:
                a, b, c = [steps[name] for name in names]
                from_left, from_right = (a >> b) >> c, a >> (b >> c)
                assert from_left == from_right, names
                assert type(from_left) is type(from_right), names
                assert len(from_left) == len(from_right), names
                assert hash(from_left) == hash(from_right), names
                assert not any(isinstance(step, pt.Compose) for step in from_left), names


@pytest.mark.parametrize("name", ["encoder", "document encoder", "encoder pipeline"])
def test_rshift_of_an_encoder_makes_an_encoder_pipeline(steps, name):
    for right in steps.values():
        assert type(steps[name] >> right) is EncoderPipeline
        assert type(right >> steps[name]) is type(right >> pt.RankCutoff(9))


def test_encoder_pipeline_does_what_pyterriers_does(steps, collection):
    pipeline = steps["encoder"] >> (steps["retriever"] >> steps["cut-off"])
    same = pt.Compose(steps["encoder"], steps["retriever"], steps["cut-off"])
    assert pipeline == same
    pd.testing.assert_frame_equal(pipeline(collection.topics), same(collection.topics))
    assert pipeline.compile() == same.compile()


def test_encoder_pipeline_lists_inputs_that_lead_somewhere(steps):
    pipeline = steps["encoder"] >> steps["index"]
    assert pt.inspect.transformer_inputs(pipeline) == [["qid", "query"]]
    assert pt.inspect.transformer_inputs(pt.Compose(*pipeline))[0] == ["qid", "query"]


# --- EncoderPipeline.index ------------------------------------------------------------------------------------------


@pytest.fixture
def counts(encoder, monkeypatch):
    """How many texts the encoder was given at once, time by time."""
    counted = []
    encode_docs = encoder.encode_docs

    def count(texts, **options):
        counted.append(len(texts))
        return encode_docs(texts, **options)

    monkeypatch.setattr(encoder, "encode_docs", count)
    return counted


DOCUMENTS = [{"docno": str(number), "text": "plot " * (1 + number % 7)} for number in range(500)]

PIPELINES = {
    "encoder >> index": (lambda e, x, i: e >> i, [500]),
    "(encoder >> x) >> index": (lambda e, x, i: (e >> x) >> i, [500]),
    "encoder >> (x >> index)": (lambda e, x, i: e >> (x >> i), [500]),
    "document encoder >> index": (lambda e, x, i: e.doc_encoder() >> i, [500]),
    "(document encoder >> x) >> index": (lambda e, x, i: (e.doc_encoder() >> x) >> i, [500]),
    "document encoder >> (x >> index)": (lambda e, x, i: e.doc_encoder() >> (x >> i), [500]),
    # PyTerrier makes these, whose first step knows nothing of encoders
    "x >> (encoder >> index)": (lambda e, x, i: x >> (e >> i), [100] * 5),
    "(x >> encoder) >> index": (lambda e, x, i: (x >> e) >> i, [100] * 5),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_index_reads_ahead_where_an_encoder_stands_first(encoder, counts, tmp_path, name):
    make, expected = PIPELINES[name]
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    make(encoder, pt.Transformer.identity(), index).index(iter(DOCUMENTS))
    assert counts == expected
    assert list(index.docnos()) == [document["docno"] for document in DOCUMENTS]
    texts = [document["text"] for document in DOCUMENTS]
    np.testing.assert_allclose(index.np_vecs(), encoder.encode_docs(texts), atol=1e-6)


def test_index_reads_as_many_as_read_ahead_says(encoder, counts, tmp_path, monkeypatch):
    assert READ_AHEAD == 2048
    monkeypatch.setattr("pyterrier_selfdistill.encoder.steps.READ_AHEAD", 300)
    (encoder >> SelfDistillIndex(tmp_path / "index.flex", verbose=False)).index(DOCUMENTS)
    assert counts == [300, 200]


def test_index_reads_as_many_as_it_is_told(encoder, counts, tmp_path):
    index = FlexIndex(str(tmp_path / "plain.flex"), verbose=False)
    (encoder.doc_encoder() >> index).index(DOCUMENTS, batch_size=200)
    assert counts == [200, 200, 100]
