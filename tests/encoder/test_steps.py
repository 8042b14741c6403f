"""The steps of an encoder by the columns of their input, and pipelines, experiments and caches with them."""

import itertools
import pickle

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier.measures import RR, nDCG
from pyterrier_caching import RetrieverCache, ScorerCache
from pyterrier_dr import VectorPrf

from pyterrier_selfdistill import (
    EncoderMismatchError,
    RetrievalEvaluator,
    SelfDistillBiEncoder,
    SelfDistillIndex,
    SelfDistillTrainer,
)


def test_steps_conform_to_pyterrier(encoder, conforms):
    for transformer in (encoder, encoder.query_encoder(), encoder.doc_encoder(), encoder.text_scorer()):
        conforms(transformer)


@pytest.mark.parametrize("form", ["frame", "list", "iterable"])
@pytest.mark.parametrize("role", ["query", "doc"])
def test_texts_are_encoded_by_their_columns(encoder, collection, role, form):
    frame, texts = (collection.topics, "query") if role == "query" else (collection.corpus, "text")
    expected = (encoder.model.encode_query if role == "query" else encoder.model.encode_document)(list(frame[texts]))
    records = frame.to_dict(orient="records")
    encoded = pd.DataFrame(encoder({"frame": frame, "list": records, "iterable": iter(records)}[form]))
    assert list(encoded.columns) == [*frame.columns, f"{role}_vec"]
    vectors = encoded[f"{role}_vec"]
    assert {(vector.dtype, vector.encoder) for vector in vectors} == {(np.dtype(np.float32), encoder.identity)}
    np.testing.assert_allclose(np.stack(vectors), expected, atol=1e-6)


def test_empty_frames_keep_types(encoder, collection):
    for frame in (collection.topics, collection.corpus, collection.results):
        whole, nothing = encoder(frame), encoder(frame.iloc[:0])
        assert list(nothing.columns) == list(whole.columns)
        assert [dtype.kind for dtype in nothing.dtypes] == [dtype.kind for dtype in whole.dtypes]


def test_progress_is_shown_if_asked(encoder, collection, capsys):
    encoder.doc_encoder(verbose=True)(pd.concat([collection.corpus] * 2))
    assert "80/80" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        ({"docno": ["d1", "d2"], "text": ["plot", None]}, TypeError, "'text' .*1 of 2 rows.*'d2'"),
        ({"docno": ["d1", "d2"], "text": ["plot", "\ud800"]}, ValueError, "ud800"),
        ({"qid": ["1", "2"], "query": [float("nan"), "plot"]}, TypeError, "'query' .*1 of 2 rows.*'1'"),
        ({"docno": ["d1"], "title": ["plot"]}, pt.validate.InputValidationError, "text"),
    ],
)
def test_what_is_not_text_is_refused(encoder, frame, error, message):
    with pytest.raises(error, match=message):
        encoder(pd.DataFrame(frame, dtype=object))


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


def test_pipelines_are_equal_however_they_are_put_together(transformers):
    pipelines = {"cut-offs": pt.RankCutoff(7) >> pt.RankCutoff(5), "led": transformers["encoder"] >> pt.RankCutoff(9)}
    steps = {**transformers, **pipelines}
    ours, others = (
        ["encoder", "document encoder", "led", "index", "trainer"],
        ["encoder", "retriever", "cut-offs", "led"],
    )
    for first, second, third in itertools.product(ours, others, others):
        for names in [(first, second, third), (second, first, third), (second, third, first)]:
            a, b, c = [steps[name] for name in names]
            from_left, from_right = (a >> b) >> c, a >> (b >> c)
            assert type(from_left) is type(from_right), names
            # equal steps are often the same object: comparing encoders computes checksums
            pairs = zip(from_left, from_right, strict=True)
            assert all(one is two or one == two for one, two in pairs), names
            assert not any(isinstance(step, pt.Compose) for step in from_left), names


def test_a_pipeline_does_what_pyterriers_does(encoder, index, collection, conforms):
    retriever, cutoff = index.retriever(num_results=3), pt.RankCutoff(2)
    pipeline, same = encoder >> (retriever >> cutoff), pt.Compose(encoder, retriever, cutoff)
    assert pipeline == same
    pd.testing.assert_frame_equal(pipeline(collection.topics), same(collection.topics))
    assert pipeline.compile() == same.compile()
    conforms(encoder >> retriever)


DOCUMENTS = [{"docno": str(number), "text": "plot " * (1 + number % 7)} for number in range(500)]

PIPELINES = {
    "encoder": (lambda e, x, i: e >> (x >> i), {}, 500),
    "document encoder": (lambda e, x, i: (e.doc_encoder() >> x) >> i, {}, 500),
    "as told": (lambda e, x, i: e.doc_encoder() >> x >> i, {"batch_size": 200}, 200),
}


@pytest.mark.parametrize(("make", "options", "read_at_once"), PIPELINES.values(), ids=PIPELINES)
def test_documents_are_read_ahead_where_an_encoder_stands_first(encoder, tmp_path, make, options, read_at_once):
    sizes = []
    counting = pt.apply.generic(lambda frame: sizes.append(len(frame)) or frame)
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    make(encoder, counting, index).index(iter(DOCUMENTS), **options)
    assert max(sizes) == read_at_once
    assert list(index.docnos()) == [document["docno"] for document in DOCUMENTS]
    np.testing.assert_allclose(index.np_vecs(), encoder.encode_docs([doc["text"] for doc in DOCUMENTS]), atol=1e-6)


@pytest.fixture
def calls(monkeypatch):
    """Counts the texts that are encoded, by encoder."""
    counted = {}

    def counting(encode):
        def count(self, texts, batch_size=None):
            texts = list(texts)
            counted[self.model_name] = counted.get(self.model_name, 0) + len(texts)
            return encode(self, texts, batch_size)

        return count

    for name in ("encode_queries", "encode_docs"):
        monkeypatch.setattr(SelfDistillBiEncoder, name, counting(getattr(SelfDistillBiEncoder, name)))
    return counted


@pytest.fixture
def transformers(encoder, index, tmp_path):
    return {
        "encoder": encoder,
        "query encoder": encoder.query_encoder(),
        "document encoder": encoder.doc_encoder(),
        "scorer": encoder.scorer(),
        "trainer": SelfDistillTrainer(encoder, tmp_path / "run", target="adaptive", num_train_epochs=2),
        "index": index,
        "retriever": index.retriever(num_results=5),
        "re-ranker": index.gar(4),
        "vector loader": index.vec_loader(),
    }


def test_candidates_are_reranked(encoder, names, collection, conforms, ranking):
    pipeline = names["bm25"] % 10 >> pt.text.get_text(names["dataset"]) >> encoder
    found = pipeline(names["topics"])
    assert ranking(found) == ranking(encoder(collection.results.merge(found[["qid", "docno"]])))
    conforms(pipeline)


def test_experiment_runs_once_what_systems_share(encoder, index, names, calls):
    systems = [
        encoder >> index,
        encoder >> index.retriever(num_results=5),
        encoder >> index >> index.vec_loader() >> VectorPrf() >> index,
    ]
    arguments = names["topics"], names["qrels"], [nDCG @ 10]
    with pytest.warns(UserWarning, match="plan='tree'"):
        apart = pt.Experiment(systems, *arguments)
    assert calls == {encoder.model_name: 3 * 8}
    calls.clear()
    together = pt.Experiment(systems, *arguments, plan="tree")
    assert calls == {encoder.model_name: 8}
    assert together["nDCG@10"].tolist() == apart["nDCG@10"].tolist()


def test_experiment_never_shares_two_models(encoder, other, names, calls):
    candidates = names["bm25"] >> pt.text.get_text(names["dataset"])
    systems = [candidates >> encoder, candidates >> other, candidates >> encoder.copy() >> pt.RankCutoff(5)]
    together = pt.Experiment(systems, names["topics"], names["qrels"], [RR], plan="tree")
    assert calls == {encoder.model_name: 8 + 320, other.model_name: 8 + 320}
    apart = [pt.Experiment([system], names["topics"], names["qrels"], [RR])["RR"].item() for system in systems]
    assert together["RR"].tolist() == apart


def test_caches_notice_that_a_model_changed(encoder, other, index, names, calls, folder):
    candidates = (names["bm25"] >> pt.text.get_text(names["dataset"]))(names["topics"])
    expected = {model: model(candidates)["score"].to_numpy() for model in (encoder, other)}
    calls.clear()
    for model, encodes in [(encoder, True), (other, True), (encoder, False), (encoder.copy(), False)]:
        before = dict(calls)
        with ScorerCache(model.cache_path("caches/scores"), model) as cached:
            scored = candidates.drop(columns=["score", "rank"]).merge(cached(candidates), on=["qid", "docno"])
        np.testing.assert_allclose(scored["score"], expected[model], atol=1e-5)
        assert (calls != before) == encodes

    before = RetrieverCache(encoder.cache_path("caches/results"), encoder >> index)(names["topics"])
    willing = SelfDistillIndex(index.index_path, verbose=False, any_encoder=True)
    after = RetrieverCache(other.cache_path("caches/results"), other >> willing)(names["topics"])
    assert before["score"].tolist() != after["score"].tolist()


def test_transformers_are_equal_after_pickling(transformers, collection):
    for name, transformer in transformers.items():
        assert name == "trainer" or pickle.loads(pickle.dumps(transformer)) == transformer
    pipeline = transformers["encoder"] >> transformers["index"]
    again = pickle.loads(pickle.dumps(pipeline))
    pd.testing.assert_series_equal(again(collection.topics)["docno"], pipeline(collection.topics)["docno"])


def test_attributes_make_the_same_transformer(transformers):
    for name, transformer in transformers.items():
        same = pt.inspect.transformer_apply_attributes(transformer)
        attributes = [{a.name for a in pt.inspect.transformer_attributes(each)} for each in (transformer, same)]
        assert attributes[0] == attributes[1]
        assert name == "trainer" or same == transformer
    trainer = pt.inspect.transformer_apply_attributes(transformers["trainer"], seed=7)
    assert (trainer.seed, trainer.target, trainer.arguments) == (7, "adaptive", {"num_train_epochs": 2})


def test_inputs_and_outputs_are_known(transformers):
    queries, candidates = ["qid", "query"], ["qid", "query", "docno", "text"]
    outputs = pt.inspect.transformer_outputs
    assert queries in pt.inspect.transformer_inputs(transformers["encoder"])
    assert outputs(transformers["encoder"], queries) == [*queries, "query_vec"]
    for name in ("encoder", "trainer"):
        assert outputs(transformers[name], candidates) == [*candidates, "score", "rank"]
    # documents lead nowhere in a pipeline that retrieves
    pipeline = transformers["encoder"] >> transformers["retriever"]
    assert pt.inspect.transformer_inputs(pipeline) == [queries]
    assert set(outputs(pipeline, queries)) == {*queries, "query_vec", "docno", "docid", "score", "rank"}


def test_schematics_are_drawn_without_a_network(transformers, no_network):
    for transformer in [*transformers.values(), transformers["index"].indexer()]:
        assert len(pt.schematic.transformer_schematic(transformer)["label"]) <= 20
        assert "<div" in pt.schematic.draw(transformer)
    pipeline = transformers["encoder"] >> transformers["retriever"] >> transformers["re-ranker"]
    assert pipeline._repr_html_().count("pts-transformer-title") >= len(pipeline)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (["docno", "body"], r"the encoder reads 'text'; your documents have \['docno', 'body'\]\. "),
        (["qid", "topic"], r"the encoder reads 'query'; your queries have \['qid', 'topic'\]\. "),
    ],
)
def test_a_missing_column_is_named_first(encoder, columns, sentence):
    frame = pd.DataFrame([["1", "sort"]], columns=columns)
    for reader in (encoder, encoder.doc_encoder() if "docno" in columns else encoder.query_encoder()):
        with pytest.raises(KeyError, match=f"^{sentence}"):
            reader(frame)


def test_indexing_and_the_first_validation_show_a_bar_and_a_query_shows_none(encoder, collection, tmp_path, capsys):
    retriever = encoder.build_retriever(collection.corpus, tmp_path / "index.flex")
    assert "Indexing: 100%" in capsys.readouterr().err
    retriever.search("sort rows")
    encoder.build_retriever(collection.records, tmp_path / "quiet.flex", verbose=False)
    assert capsys.readouterr().err == ""
    shown = encoder.apply_attributes(verbose=True)
    index = SelfDistillIndex(tmp_path / "shown.flex")
    (shown >> index).index(collection.corpus)
    written = capsys.readouterr().err
    assert "Indexing: 100%" in written
    assert "dvec" not in written
    (shown >> index).search("sort rows")
    assert capsys.readouterr().err == ""
    (shown >> index)(collection.topics)
    assert "Encoding Queries: 100%" in capsys.readouterr().err
    options = {"corpus": collection.corpus, "encoder_options": {"verbose": True}}
    evaluator = RetrievalEvaluator(collection.topics, collection.qrels, [nDCG @ 10], **options)
    evaluator(encoder.model, steps=0)
    assert "Indexing: 40" in capsys.readouterr().err
    evaluator(encoder.model, steps=3)
    assert capsys.readouterr().err == ""
