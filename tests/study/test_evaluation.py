import pandas as pd
import pyterrier as pt

from benchmarks.study.evaluation import evaluate


def test_evaluate_measures_each_query_and_saves_a_trec_run(collection, tmp_path):
    scored = collection.results.merge(collection.qrels, on=["qid", "docno"])
    retriever = pt.Transformer.from_df(pt.model.add_ranks(scored.assign(score=scored["label"])))
    topics, qrels = collection.topics, collection.qrels
    values = evaluate(retriever, "test", topics, qrels, trec=tmp_path / "trec", name="perfect")
    assert values.index.tolist() == topics["qid"].tolist()
    assert set(values.columns) == {"nDCG@10", "RR@10", "R@100", "R@1000"}
    assert (values == 1).all(axis=None)
    assert (tmp_path / "trec" / "perfect.res.gz").exists()
    on_dev = evaluate(retriever, "dev", topics, qrels, trec=tmp_path / "trec-dev", name="perfect")
    assert set(on_dev.columns) == {"nDCG@10", "RR@10"}
    assert isinstance(on_dev, pd.DataFrame)
