"""Faults of other libraries: a test that fails here says which workaround of compat.py to delete.

The tests named ``..._is_needed`` show a fault in the plain library; the others, that the workaround mends it and leaves
a mended library alone.
"""

import errno
import pickle
import warnings

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_alpha as pta
import pytest
import torch
import voyager
from datasets import Dataset
from pyterrier_dr import FlexIndex
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers.training_args import ParallelMode
from transformers.utils import logging

from pyterrier_selfdistill.utils import compat

VECTORS = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
# torch says so of the plain index once in a process, in whatever test is the first
pytestmark = pytest.mark.filterwarnings("ignore:The given (buffer|NumPy array) is not writable")

DELETE = "the fault is mended; delete compat.{} as its docstring says"


@pytest.fixture
def plain(tmp_path):
    """A plain FlexIndex of 40 unit vectors."""
    index = FlexIndex(str(tmp_path / "plain.flex"), verbose=False)
    index.index([{"docno": f"d{number}", "doc_vec": vector} for number, vector in enumerate(VECTORS)])
    return index


@pytest.fixture
def queries():
    return pd.DataFrame({"qid": list("abc"), "query_vec": list(VECTORS[:3])})


@pytest.fixture
def candidates(queries):
    documents = pd.DataFrame({"docno": [f"d{number}" for number in range(10)]})
    return queries.merge(documents, how="cross")


def fails(function, *errors):
    """Whether a function raises one of the errors."""
    try:
        function()
    except errors:
        return True
    return False


# --- combine_checksums ------------------------------------------------------


def test_combine_checksums_is_needed():
    assert not hasattr(pd.util, "combine_hash_arrays"), DELETE.format("combine_checksums")


def test_combine_checksums_gives_those_of_a_frame():
    frame = pd.DataFrame({"a": ["x", "y", "é"], "b": ["y", "x", ""]})
    columns = [pd.util.hash_array(frame[name].to_numpy(dtype=object), hash_key="0" * 16) for name in frame]
    expected = pd.util.hash_pandas_object(frame, index=False, hash_key="0" * 16)
    assert compat.combine_checksums(columns).tolist() == expected.tolist()


# --- system_error_code ----------------------------------------------------------------------------------------------


def test_system_error_code_is_needed(tmp_path):
    with pytest.raises(Exception, match="No such file") as raised:
        save_file({"weights": torch.zeros(3)}, tmp_path / "nothing" / "model.safetensors")
    assert not isinstance(raised.value, OSError), DELETE.format("system_error_code")
    assert compat.system_error_code(raised.value) == errno.ENOENT


def test_system_error_code():
    assert compat.system_error_code(OSError(errno.ENOSPC, "No space left on device")) == errno.ENOSPC
    assert compat.system_error_code(ValueError("no number")) is None


# --- tensor_version -------------------------------------------------------------------------------------------------


def test_tensor_version_is_needed():
    public = [name for name in dir(torch.Tensor) if "version" in name and not name.startswith("_")]
    assert not public, DELETE.format("tensor_version")


def test_tensor_version_counts_changes_in_place():
    tensor = torch.zeros(3)
    before = compat.tensor_version(tensor)
    tensor.add_(1)
    assert compat.tensor_version(tensor) == before + 1


# --- training -------------------------------------------------------------------------------------------------------

TEXTS = ["sort the rows of a table", "plot a matrix"]


@pytest.fixture
def make_plain_trainer(tiny_model, tmp_path):
    """Make a trainer of sentence-transformers for one step that changes nothing."""

    def make(**options):
        arguments = SentenceTransformerTrainingArguments(
            str(tmp_path / "run"),
            learning_rate=0.0,
            max_steps=1,
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
            **options,
        )
        dataset = Dataset.from_dict({"anchor": ["sort", "plot"], "positive": TEXTS})
        loss = MultipleNegativesRankingLoss(tiny_model)
        return SentenceTransformerTrainer(tiny_model, args=arguments, train_dataset=dataset, loss=loss)

    return make


@pytest.fixture
def progress_bars():
    """Progress bars of transformers are on, as they are unless a user turns them off."""
    logging.enable_progress_bar()


def test_no_transformers_progress_bars_is_needed(make_plain_trainer, progress_bars, capsys):
    make_plain_trainer(save_steps=1).train()
    assert "it/s]" in capsys.readouterr().err, DELETE.format("no_transformers_progress_bars")


def test_no_transformers_progress_bars_hides_them(make_plain_trainer, progress_bars, capsys):
    with compat.no_transformers_progress_bars():
        make_plain_trainer(save_steps=1).train()
    assert "it/s]" not in capsys.readouterr().err
    assert logging.is_progress_bar_enabled()


def test_no_widget_examples_is_needed(make_plain_trainer, tiny_model, capsys):
    tiny_model.model_card_data.generate_widget_examples = False
    make_plain_trainer()
    assert "widget examples" in capsys.readouterr().err, DELETE.format("no_widget_examples")


def test_no_widget_examples_chooses_none(make_plain_trainer, tiny_model, capsys):
    with compat.no_widget_examples(tiny_model):
        make_plain_trainer()
    assert capsys.readouterr().err == ""
    make_plain_trainer()
    assert "widget examples" in capsys.readouterr().err


@pytest.fixture
def several_gpus(tmp_path):
    """Training arguments in a process that sees two GPUs."""
    arguments = SentenceTransformerTrainingArguments(str(tmp_path / "run"), use_cpu=True)
    arguments._n_gpu = 2
    return arguments


def test_use_one_gpu_is_needed(several_gpus):
    assert several_gpus.parallel_mode == ParallelMode.NOT_DISTRIBUTED, DELETE.format("use_one_gpu")
    assert several_gpus.train_batch_size == 2 * several_gpus.per_device_train_batch_size


def test_use_one_gpu(several_gpus, caplog):
    compat.use_one_gpu(several_gpus)
    assert several_gpus.parallel_mode == ParallelMode.NOT_PARALLEL
    assert several_gpus.train_batch_size == several_gpus.per_device_train_batch_size
    assert "torchrun --nproc-per-node 2" in caplog.text
    compat.use_one_gpu(several_gpus)
    assert len(caplog.records) == 1


def test_remove_autocast_is_needed(make_plain_trainer, tiny_model):
    before = tiny_model.encode(TEXTS, convert_to_tensor=True)
    make_plain_trainer(bf16=True).train()
    after = tiny_model.encode(TEXTS, convert_to_tensor=True)
    assert not torch.equal(after, before), DELETE.format("remove_autocast")


def test_remove_autocast_gives_the_model_as_it_was(make_plain_trainer, tiny_model):
    before = tiny_model.encode(TEXTS, convert_to_tensor=True)
    trainer = make_plain_trainer(bf16=True)
    trainer.train()
    compat.remove_autocast(tiny_model)
    assert torch.equal(tiny_model.encode(TEXTS, convert_to_tensor=True), before)


def test_limit_autocast_to_training_evaluates_in_the_precision_of_the_weights(make_plain_trainer, tiny_model):
    """And leaves nothing behind that ``remove_autocast`` does not remove."""
    before = tiny_model.encode(TEXTS, convert_to_tensor=True)
    make_plain_trainer(bf16=True).train()
    compat.limit_autocast_to_training(tiny_model)
    assert torch.equal(tiny_model.encode(TEXTS, convert_to_tensor=True), before)
    features = tiny_model.preprocess(TEXTS)
    tiny_model.train()
    in_16_bits = tiny_model(features)["token_embeddings"]
    compat.remove_autocast(tiny_model)
    assert not torch.equal(in_16_bits.round(decimals=6), tiny_model(features)["token_embeddings"].round(decimals=6))
    tiny_model.eval()
    assert torch.equal(tiny_model.encode(TEXTS, convert_to_tensor=True), before)


def test_limit_autocast_to_training_leaves_other_models_alone(tiny_model):
    compat.limit_autocast_to_training(tiny_model)
    assert "forward" not in vars(tiny_model)


# --- schematic ------------------------------------------------------------------------------------------------------


class Labelled(pt.Transformer):
    """A transformer with a label, and a page if it has one."""

    def __init__(self, schematic):
        self.schematic = schematic

    def transform(self, inp):
        return inp


def test_schematic_is_needed(no_network):
    is_drawn = not fails(lambda: pt.schematic.draw(Labelled({"label": "Box"})), OSError)
    assert not is_drawn, DELETE.format("schematic")


def test_schematic_is_drawn_without_a_network(no_network):
    assert "Box" in pt.schematic.draw(Labelled(compat.schematic("Box")))


# --- opened_files, files_of_retrievers and make_corpus_graph --------------------------------------------------------


def test_opened_files_is_needed(plain):
    plain.docnos()
    opens_all = getattr(plain, "_dvecs") is not None  # noqa: B009 - a private name
    assert not opens_all, DELETE.format("opened_files")


def test_opened_files_are_not_opened_again(plain):
    vectors = np.zeros((40, 8), dtype=np.float32)
    vars(plain).update(compat.opened_files({"doc_count": 40, "vec_size": 8}, vectors, "docnos"))
    assert plain.payload()[0] == "docnos"
    assert plain.payload()[1] is vectors


def test_files_of_retrievers_are_those_that_retrievers_write(plain):
    before = set(plain.index_path.iterdir())
    plain.faiss_hnsw_retriever()
    plain.faiss_ivf_retriever()
    compat.make_voyager_graph(plain, OPTIONS)
    plain.corpus_graph(3)
    written = set(plain.index_path.iterdir()) - before
    assert len(written) == 4
    assert set(compat.files_of_retrievers(plain.index_path)) == written, "see compat.files_of_retrievers"
    compat.remove_files_of_retrievers(plain.index_path)
    assert set(plain.index_path.iterdir()) == before


@pytest.mark.parametrize(("k", "batch_size"), [(41, 8192), (7, 17)])
def test_make_corpus_graph_is_needed(plain, k, batch_size):
    fits = not fails(lambda: plain.corpus_graph(k, batch_size=batch_size), RuntimeError)
    assert not fits, DELETE.format("make_corpus_graph")


@pytest.mark.parametrize(("k", "expected"), [(7, 7), (39, 39), (1000, 39)])
def test_make_corpus_graph_takes_the_neighbours_that_there_are(plain, k, expected, monkeypatch):
    # batches of 14 documents, and of all
    largest = 17 if k == 7 else 8192
    monkeypatch.setattr(compat, "LARGEST_BATCH", largest)
    assert compat.make_corpus_graph(plain, k) == expected
    neighbours = plain.corpus_graph(expected).neighbours(0)
    nearest = np.argsort(-(VECTORS @ VECTORS[0]))[1 : expected + 1]
    assert set(neighbours) == set(nearest)


# --- closed_files ---------------------------------------------------------------------------------------------------


def test_closed_files_is_needed(plain):
    closed = {name: getattr(plain, name) for name in compat.closed_files()}
    assert closed == compat.closed_files(), "FlexIndex keeps its files elsewhere; see compat.closed_files"
    plain.payload()
    plain.torch_vecs(device="cpu")
    assert len(pickle.dumps(plain)) > VECTORS.nbytes, DELETE.format("closed_files")


# --- masked_retriever -----------------------------------------------------------------------------------------------

MASK = np.arange(40) % 3 == 0


def test_masked_retriever_is_needed(plain, queries):
    found = plain.np_retriever(mask=MASK.astype(np.int8), num_results=MASK.sum())(queries)
    assert not MASK[found["docid"].astype(int)].all(), DELETE.format("masked_retriever")


def test_masked_retriever_finds_documents_of_the_mask_only(plain, queries):
    mask = MASK.astype(np.int8)
    found = compat.masked_retriever(plain, num_results=MASK.sum(), mask=mask, drop_query_vec=True)(queries)
    assert MASK[found["docid"].astype(int)].all()
    assert len(found) == 3 * MASK.sum()


# --- transform_queries ----------------------------------------------------------------------------------------------


class Lists(pt.Transformer):
    """A retriever that finds as many documents for a query as its identifier says."""

    def transform(self, inp):
        builder = pta.DataFrameBuilder(["docno", "score", "rank"])
        for qid in inp["qid"]:
            count = int(qid)
            docnos = np.array([f"d{number}" for number in range(count)], dtype=object)
            ranks = np.arange(count)
            builder.extend({"docno": docnos, "score": 1.0 - ranks, "rank": ranks})
        return builder.to_df(inp.reset_index(drop=True))


def test_transform_queries_is_needed():
    alone = Lists()(pd.DataFrame({"qid": ["1"]}))
    assert alone["rank"].dtype == object, DELETE.format("transform_queries")
    assert fails(lambda: Lists()(pd.DataFrame({"qid": ["2", "1"]})), ValueError), DELETE.format("transform_queries")


@pytest.mark.parametrize("qids", ["3", "1", "11", "31", "13", "301", "031", "0"])
def test_transform_queries_takes_any_numbers_of_results(qids):
    found = compat.transform_queries(Lists(), pd.DataFrame({"qid": list(qids)}))
    expected = [(qid, f"d{number}", 1.0 - number, number) for qid in qids for number in range(int(qid))]
    assert list(found[["qid", "docno", "score", "rank"]].itertuples(index=False, name=None)) == expected
    assert found.index.is_unique


def test_transform_queries_raises_other_errors(queries):
    def fail(frame):
        raise ValueError("no such similarity")

    with pytest.raises(ValueError, match="no such similarity"):
        compat.transform_queries(pt.apply.generic(fail), queries)


# --- score_nothing and first_results --------------------------------------------------------------------------------


def test_score_nothing_is_needed(plain, candidates):
    assert fails(lambda: plain.np_scorer()(candidates.iloc[:0]), ValueError), DELETE.format("score_nothing")


def test_score_nothing_adds_columns(candidates):
    assert list(compat.score_nothing(candidates.iloc[:0]).columns) == [*candidates.columns, "score", "rank"]


def test_first_results_is_needed(plain, candidates):
    assert fails(lambda: plain.np_scorer(num_results=3)(candidates), AttributeError), DELETE.format("first_results")


def test_first_results_are_the_best(plain, candidates):
    scored = plain.np_scorer()(candidates)
    best = compat.first_results(scored, 3)
    assert best.groupby("qid")["rank"].apply(list).tolist() == [[0, 1, 2]] * 3
    assert best["docno"].tolist() == scored[scored["rank"] < 3]["docno"].tolist()
    assert compat.first_results(scored, None) is scored


# --- Voyager --------------------------------------------------------------------------------------------------------


OPTIONS = {"neighbours": 12, "ef_construction": 200, "random_seed": 1, "storage_data_type": "float32"}


@pytest.fixture
def searched(plain):
    """The plain FlexIndex with a graph, which it cannot make itself with voyager 2.2."""
    compat.make_voyager_graph(plain, OPTIONS)
    return plain


def exact_scores(found, queries):
    """The cosines of queries and the documents that were found."""
    vectors = queries.set_index("qid")["query_vec"]
    return [vectors[qid] @ VECTORS[docid] for qid, docid in zip(found["qid"], found["docid"].astype(int), strict=True)]


def test_retrieve_nothing_is_needed(searched, queries):
    retriever = searched.voyager_retriever()
    advice = "the fault is mended; delete the case of Voyager in IndexTransformer._transform_nothing"
    assert fails(lambda: retriever(queries.iloc[:0]), ValueError), advice


def test_make_voyager_graph_is_needed():
    """A race, which is not lost every time."""
    vectors = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    for _ in range(100):
        index = voyager.Index(voyager.Space.InnerProduct, num_dimensions=8)
        index.add_items(vectors)
        if not np.allclose(index.get_vectors(list(range(1000))), vectors, atol=1e-5):
            return
    pytest.skip("100 graphs had all vectors at their places; see compat.make_voyager_graph")


@pytest.mark.parametrize("batch", [8192, 7])
@pytest.mark.parametrize("storage", ["float32", "float8", "e4m3"])
def test_make_voyager_graph_is_what_flexindex_reads(plain, storage, batch, monkeypatch):
    monkeypatch.setattr(compat, "LARGEST_BATCH", batch)
    options = {**OPTIONS, "storage_data_type": storage}
    compat.make_voyager_graph(plain, options)
    written = {path: path.stat().st_mtime_ns for path in plain.index_path.glob("*")}
    retriever = plain.voyager_retriever(storage_data_type=storage)
    assert {path: path.stat().st_mtime_ns for path in plain.index_path.glob("*")} == written
    stored = retriever.voyager_index.get_vectors(list(range(40)))
    np.testing.assert_allclose(stored, VECTORS, atol=0.1)
    compat.make_voyager_graph(plain, options)
    assert {path: path.stat().st_mtime_ns for path in plain.index_path.glob("*")} == written


def test_mend_voyager_num_results_is_needed(searched):
    retriever = searched.voyager_retriever(num_results=5)
    advice = "the fault is mended; delete num_results of compat.mend_voyager_query"
    assert retriever.num_results != 5, advice


def test_mend_voyager_query_is_needed(searched, queries):
    retriever = searched.voyager_retriever(query_ef=17)
    retriever.num_results = 5
    called = []

    class Spy:
        def query(self, *arguments, **options):
            called.append((arguments[2:], options))
            return np.zeros((3, 5), dtype=np.uint64), np.ones((3, 5), dtype=np.float32)

    retriever.voyager_index = Spy()
    retriever(queries)
    assert called == [((17,), {})], DELETE.format("mend_voyager_query")


def test_mend_voyager_scores_is_needed(searched, queries):
    retriever = searched.voyager_retriever()
    retriever.num_results = 5
    found = retriever(queries)
    lower = np.array(exact_scores(found, queries)) - found["score"].to_numpy(dtype=float)
    np.testing.assert_allclose(lower, 1, atol=1e-5, err_msg=DELETE.format("mend_voyager_scores"))


def mend(retriever, num_results):
    compat.mend_voyager_query(retriever, num_results)
    compat.mend_voyager_scores(retriever)
    return retriever


class MendedVoyagerRetriever(pt.Transformer):
    """VoyagerRetriever as it is meant: with its number of results, a named ``query_ef``, and similarities as scores."""

    def __init__(self, flex_index, voyager_index, query_ef, num_results):
        self.flex_index = flex_index
        self.voyager_index = voyager_index
        self.query_ef = query_ef
        self.num_results = num_results

    def transform(self, inp):
        vectors = np.stack(inp["query_vec"])
        docids, distances = self.voyager_index.query(vectors, self.num_results, query_ef=self.query_ef)
        frames = []
        for qid, found, distance in zip(inp["qid"], docids, distances, strict=True):
            ranks = range(len(found))
            docnos = [f"d{docid}" for docid in found]
            frames.append(
                pd.DataFrame({"qid": qid, "docno": docnos, "docid": found, "score": 1 - distance, "rank": ranks})
            )
        return pd.concat(frames, ignore_index=True)


@pytest.fixture
def voyager_index():
    index = voyager.Index(voyager.Space.InnerProduct, num_dimensions=8)
    index.add_items(VECTORS, ids=list(range(len(VECTORS))))
    return index


@pytest.mark.parametrize("num_results", [1, 5, 1000])
def test_mended_voyager_retriever_is_right(searched, queries, voyager_index, num_results):
    """Both the one of pyterrier-dr with its faults and one that has none."""
    faulty = searched.voyager_retriever(num_results=num_results, query_ef=20)
    right = MendedVoyagerRetriever(searched, voyager_index, query_ef=20, num_results=num_results)
    for retriever in (faulty, right):
        found = compat.transform_queries(mend(retriever, num_results), queries)
        assert found.groupby("qid").size().tolist() == [min(num_results, 40)] * 3
        np.testing.assert_allclose(found["score"].astype(float), exact_scores(found, queries), atol=1e-5)
        assert found[found["rank"] == 0]["docno"].tolist() == ["d0", "d1", "d2"]


def test_mend_voyager_scores_leaves_a_mended_retriever_alone(plain, voyager_index):
    right = MendedVoyagerRetriever(plain, voyager_index, query_ef=20, num_results=5)
    compat.mend_voyager_scores(right)
    assert right.voyager_index is voyager_index


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ((17,), {}, ((), {"query_ef": 17})),
        ((3,), {}, ((), {"query_ef": 5})),
        ((), {"query_ef": 17}, ((), {"query_ef": 17})),
        ((), {"num_threads": 2, "query_ef": 17}, ((), {"num_threads": 2, "query_ef": 17})),
        ((-1, 17), {}, ((-1, 17), {})),
        ((), {}, ((), {})),
    ],
)
def test_mend_voyager_query_leaves_right_calls_alone(searched, arguments, options, expected):
    called = []

    class Spy:
        def __len__(self):
            return 40

        def query(self, vectors, k, *arguments, **options):
            called.append((k, (arguments, options)))

    retriever = searched.voyager_retriever()
    retriever.voyager_index = Spy()
    compat.mend_voyager_query(retriever, 5)
    retriever.voyager_index.query(VECTORS, 5, *arguments, **options)
    assert called == [(5, expected)]


# --- no_warning_of_mapped_vectors -----------------------------------------------------------------------------------


def make_tensor(index):
    index.torch_vecs(device="cpu")


def make_graph(index):
    index.corpus_graph(2)


@pytest.mark.parametrize("make", [make_tensor, make_graph])
def test_no_warning_of_mapped_vectors(plain, make):
    """Where one is mended, and not the other, the context manager is still needed."""
    assert fails_with_warnings(lambda: make(plain)), DELETE.format("no_warning_of_mapped_vectors")

    def make_quietly():
        with compat.no_warning_of_mapped_vectors():
            make(plain)

    assert not fails_with_warnings(make_quietly)


def fails_with_warnings(function):
    # torch warns once in a process
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return fails(function, UserWarning)
    finally:
        torch.set_warn_always(False)
