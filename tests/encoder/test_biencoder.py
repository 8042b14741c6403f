"""The bi-encoder: its vectors, how models are loaded, what makes two encoders equal, and what is made of one."""

import hashlib
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch

from pyterrier_selfdistill import EncoderMismatchError, SelfDistillBiEncoder, SelfDistillIndex

load = SelfDistillBiEncoder.from_pretrained
QUERIES = ["sort rows", "plot", "read a file"]
DOCUMENTS = ["sort the rows of a table by column", "plot a matrix", "read", "write a file and return the mean value"]


def test_vectors_do_not_depend_on_batches(encoder):
    texts = [*DOCUMENTS, "", "aaaaaaaaaa", *DOCUMENTS[::-1]]
    one_by_one = np.concatenate([encoder.encode_docs([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode_docs(texts, batch_size=2), one_by_one, atol=1e-6)
    np.testing.assert_allclose(one_by_one, encoder.model.encode_document(texts), atol=1e-6)
    assert encoder.encode_docs([]).shape == (0, encoder.dimension)


def test_more_texts_than_are_tokenized_together_keep_their_order(encoder):
    words = ["sort", "plot", "read", "table", "a", "mean", "file", "array", "row", "d"]
    texts = [f"{a} {b} {c} {c * (3 if a == b else 1)}" for a in words for b in words for c in words] + ["plot"] * 200
    vectors = encoder.encode_docs(texts, batch_size=64)
    some = range(0, len(texts), 97)
    expected = np.concatenate([encoder.encode_docs([texts[position]]) for position in some])
    np.testing.assert_allclose(vectors[some], expected, atol=1e-6)


def test_cores_share_a_batch_without_changing_how_many_there_are(encoder):
    texts = [f"{word} {' the' * length}" for word in ("sort", "plot") for length in range(40)]
    expected = encoder.encode_docs(texts)
    threads = set()
    record = lambda *_: threads.add((threading.get_ident(), torch.get_num_threads()))  # noqa: E731
    encoder.model[0].register_forward_pre_hook(record)
    cores = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        vectors = encoder.encode_docs(texts, batch_size=16)
        assert len(threads) == 2  # of two cores and eight texts each
        assert {number for _, number in threads} == {2}
        with ThreadPoolExecutor(1) as later:
            assert torch.get_num_threads() == later.submit(torch.get_num_threads).result() == 4
        with pytest.raises(RuntimeError, match="no memory"), patch.object(encoder.model, "forward", fail):
            encoder.encode_docs(texts, batch_size=16)
        assert torch.get_num_threads() == 4
        with pytest.raises(RuntimeError, match="no thread"), patch.object(ThreadPoolExecutor, "submit", start_one):
            encoder.encode_docs(texts, batch_size=16)
    finally:
        torch.set_num_threads(cores)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def fail(*arguments, **options):
    raise RuntimeError("no memory")


SUBMIT = ThreadPoolExecutor.submit


def start_one(pool, work):
    if pool._threads:
        raise RuntimeError("no thread")
    return SUBMIT(pool, work)


def test_equal_texts_are_encoded_once(encoder):
    rows = []
    record = lambda layer, given, options: rows.extend(given[0]["input_ids"])  # noqa: E731
    encoder.model[0].register_forward_pre_hook(record, with_kwargs=True)
    encoder.encode_docs([*DOCUMENTS, *DOCUMENTS], batch_size=2)
    assert len(rows) == len(DOCUMENTS)


def test_encode_queries_torch_gives_gradients(encoder):
    vectors = encoder.encode_queries_torch(QUERIES, batch_size=2)
    np.testing.assert_allclose(vectors.detach().numpy(), encoder.encode_queries(QUERIES), atol=1e-6)
    vectors.sum().backward()
    gradients = [parameter.grad for parameter in encoder.model.parameters() if parameter.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert encoder.encode_queries_torch([]).shape == (0, encoder.dimension)


@pytest.mark.parametrize(("texts", "message"), [("plot", "list of strings"), (["plot", None], r"\[1\]")])
def test_what_is_not_a_list_of_strings_is_refused(encoder, texts, message):
    for encode in (encoder.encode_docs, encoder.encode_queries_torch):
        with pytest.raises(TypeError, match=message):
            encode(texts)


def test_a_sentence_transformers_model_keeps_its_layers(tiny_model, tmp_path):
    tiny_model.save(str(tmp_path / "model"))
    assert load(tmp_path / "model", device="cpu").model[1].pooling_mode == "mean"
    with pytest.raises(ValueError, match="pooling='cls'"):
        load(tmp_path / "model", pooling="cls")


def test_texts_are_cut_at_lengths(language_model):
    encoder = load(language_model, query_length=4, document_length=6, device="cpu")
    words = ["sort", "the", "rows", "of", "a", "table", "by", "column"]
    for encode, length in [(encoder.encode_queries, 4), (encoder.encode_docs, 6)]:
        # [CLS] and [SEP] count
        whole, cut, shorter = encode([" ".join(words[:count]) for count in (8, length - 2, length - 3)])
        np.testing.assert_allclose(whole, cut, atol=1e-6)
        assert not np.allclose(whole, shorter, atol=1e-3)


def test_prompts_are_put_before_texts(encoder, language_model):
    given = load(language_model, query_prompt="query: ", document_prompt="d: ", device="cpu")
    for prompted in (given, encoder.with_prompts(query="query: ", document="d: ")):
        queries = prompted.encode_queries(["plot"])
        np.testing.assert_allclose(queries, encoder.encode_queries(["query: plot"]), atol=1e-6)
        np.testing.assert_allclose(prompted.encode_queries_torch(["plot"]).detach(), queries, atol=1e-6)
        np.testing.assert_allclose(prompted.encode_docs(["plot"]), encoder.encode_docs(["d: plot"]), atol=1e-6)
    # prompts are cut with the text
    short = load(language_model, query_length=4, query_prompt="query: ", device="cpu")
    np.testing.assert_allclose(short.encode_queries(["plot"]), encoder.encode_queries(["query:"]), atol=1e-6)


def test_prompts_have_the_names_that_sentence_transformers_gives_them(tiny_model):
    tiny_model.prompts = {"passage": "d: ", "clustering": "query: "}
    tiny_model.default_prompt_name = "clustering"
    encoder = SelfDistillBiEncoder(tiny_model)
    np.testing.assert_allclose(encoder.encode_docs(["plot"]), tiny_model.encode_document(["plot"]), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_queries(["plot"]), tiny_model.encode_query(["plot"]), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"query_length": 65}, "query_length .* 64, .*got 65"),
        ({"dtype": torch.float64}, "dtype .*got torch.float64"),
        ({"pooling": "first"}, "pooling .*got 'first'"),
        ({"device": "cuda:99"}, "device .*'cpu'"),
    ],
)
def test_bad_options_are_refused(language_model, options, message):
    with pytest.raises(ValueError, match=message):
        load(language_model, **options)


@pytest.mark.parametrize(("name", "error"), [("./nothing", FileNotFoundError), ("me/nothing", OSError)])
def test_a_model_that_is_missing_is_named(name, error):
    with pytest.raises(error, match="(?s)nothing.*Hugging Face hub"):
        load(name)


OPTIONS = [
    {},
    {"pooling": "mean"},
    {"query_length": 4},
    {"document_prompt": "d: "},
    {"batch_size": 7},
    {"dtype": "bfloat16"},
]


def test_encoders_and_steps_are_equal_if_all_options_are(language_model):
    encoders, again = [[load(language_model, device="cpu", **options) for options in OPTIONS] for _ in range(2)]
    for number, one in enumerate(encoders):
        assert [one == two for two in again] == [number == position for position in range(len(OPTIONS))]
        for role in (lambda e: e, lambda e: e.query_encoder(), lambda e: e.doc_encoder(), lambda e: e.scorer()):
            assert role(one) == role(again[number])
            assert hash(role(one)) == hash(role(again[number]))
            assert role(one) != role(encoders[number - 1])
    # neither the batch size nor the precision changes whose vectors they are
    checksums = [encoder.model_name for encoder in encoders]
    assert len(set(checksums)) == len(OPTIONS) - 2
    assert checksums[0] == checksums[-1] == checksums[-2]
    assert pickle.loads(pickle.dumps(encoders[0])) == encoders[0].copy() == encoders[0]


def test_the_checksum_is_of_layers_settings_and_weights(encoder):
    """Indexes and caches on disk hold it, so it must stay the same."""
    model = encoder.model
    settings = encoder.query_length, encoder.document_length, model.max_seq_length, tuple(model.prompts.items())
    expected = hashlib.sha256(repr((str(model), settings)).encode())
    for tensor in model.state_dict().values():
        expected.update(tensor.numpy().tobytes())
    assert encoder.model_name == encoder.identity.checksum == expected.hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights[7, 3].mul_(1 + 2**-22),
        lambda weights: weights.data[5].add_(1),
        lambda weights: weights.data[:, 3].add_(1),
        lambda weights: weights.data[8:10].neg_(),
        lambda weights: weights.data.copy_(weights.flip(0)),
        lambda weights: weights.data.copy_(weights.roll(2, dims=1)),
    ],
    ids=["the last bits", "M5", "a column", "signs", "the order of rows", "the order of columns"],
)
@torch.no_grad()
def test_the_checksum_and_vectors_follow_changes_of_weights(encoder, change):
    """Also of ``.data``, which torch does not count, if all of a row or of a column changes."""
    halved = encoder.apply_attributes(dtype="bfloat16")
    before, _ = encoder.model_name, halved.encode_docs(DOCUMENTS)
    change(encoder.model[0].auto_model.embeddings.word_embeddings.weight)
    assert encoder.model_name == encoder.copy().model_name == halved.model_name != before
    np.testing.assert_array_equal(halved.encode_docs(DOCUMENTS), halved.copy().encode_docs(DOCUMENTS))


@pytest.mark.parametrize("options", [{"fused": True}, {"fused": False, "foreach": False}])
def test_the_checksum_follows_every_step_of_training(encoder, options):
    parameters = [parameter for parameter in encoder.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, **options)
    names = {encoder.model_name}
    for _ in range(3):
        encoder.encode_queries_torch(QUERIES).sum().backward()
        optimizer.step()
        names.add(encoder.model_name)
    assert len(names) == 4


def test_variants_keep_name_and_history(encoder):
    encoder.training_summary = {"seed": 7}
    changed = encoder.apply_attributes(batch_size=7)
    assert (changed.batch_size, changed.model) == (7, encoder.model)
    for variant in (changed, encoder.truncate(8), encoder.with_prompts(query="query: ")):
        assert (variant.name, variant.training_summary["seed"]) == (encoder.name, 7)
        assert (variant.model_name == encoder.model_name) == (variant is changed)
    assert encoder.truncate(8).training_summary["truncated_from"] == 32


def test_other_prompts_share_the_weights(encoder):
    changed = encoder.with_prompts(query="read: ")
    with torch.no_grad():
        next(encoder.model.parameters())[:, :8] += 1
    np.testing.assert_array_equal(changed.encode_docs(QUERIES), encoder.encode_docs(QUERIES))
    assert changed.with_prompts(query="", document="") == encoder


def test_truncated_vectors_are_prefixes_of_unit_length(encoder):
    whole, shorter = encoder.encode_docs(DOCUMENTS), encoder.truncate(8)
    for dimension, cut in {8: shorter, 3: shorter.truncate(3)}.items():
        expected = whole[:, :dimension] / np.linalg.norm(whole[:, :dimension], axis=1, keepdims=True)
        np.testing.assert_allclose(cut.encode_docs(DOCUMENTS), expected, atol=1e-6)
    with pytest.raises(ValueError, match="32 dimensions .*got 32"):
        encoder.truncate(32)


def test_variants_search_their_own_indexes_only(encoder, index, collection, tmp_path):
    # the last has vectors as long as the first, so that only its identity tells them apart
    variants = [encoder.truncate(8), encoder.with_prompts(document="read: "), encoder.truncate(16).truncate(8)]
    for number, variant in enumerate(variants):
        own = SelfDistillIndex(tmp_path / f"{number}.flex", verbose=False)
        (variant >> own).index(collection.records)
        assert len((variant >> own)(collection.topics)) == 320
        for mixed in (encoder >> own, variant >> index, variants[number - 1] >> own):
            with pytest.raises((EncoderMismatchError, ValueError)):
                mixed(collection.topics)


def test_an_index_is_cut_without_encoding_anew(encoder, other, index, collection, tmp_path):
    cut = encoder.truncate_index(index, tmp_path / "cut.flex", 8)
    built = SelfDistillIndex(tmp_path / "built.flex", verbose=False)
    (encoder.truncate(8) >> built).index(collection.records)
    np.testing.assert_allclose(cut.np_vecs(), built.np_vecs(), atol=1e-6)
    assert cut.encoder == built.encoder
    assert list(cut.docnos()) == list(built.docnos())
    with pytest.raises(EncoderMismatchError):
        other.truncate_index(index, tmp_path / "other.flex", 8)


@pytest.mark.parametrize("form", [iter, pd.DataFrame])
def test_build_retriever_indexes_any_corpus(encoder, collection, tmp_path, form, ranking):
    topics, records = collection.topics, collection.records
    retriever = encoder.build_retriever(form(records), tmp_path / "index.flex", num_results=3)
    found = retriever(topics)
    assert found.groupby("qid").size().unique().tolist() == [3]
    assert ranking(found) == ranking(((encoder >> SelfDistillIndex(tmp_path / "index.flex")) % 3)(topics))
    encoder.build_retriever(form(records[:2]), tmp_path / "index.flex", overwrite=True)
    assert len(SelfDistillIndex(tmp_path / "index.flex")) == 2


def test_build_retriever_joins_fields_and_leaves_nothing_of_an_error(encoder, tmp_path):
    corpus = [{"docno": thing, "title": "plot", "body": f"a {thing}"} for thing in ("table", "file")]
    with pytest.raises(ValueError, match="'text'"):
        encoder.build_retriever(corpus, tmp_path / "index.flex", fields=["title", "text"])
    assert not list(tmp_path.iterdir())
    encoder.build_retriever(corpus, tmp_path / "index.flex", fields=["title", "body"])
    vectors = SelfDistillIndex(tmp_path / "index.flex").np_vecs()
    np.testing.assert_allclose(vectors, encoder.encode_docs(["plot a table", "plot a file"]), atol=1e-6)
