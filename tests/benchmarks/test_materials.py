"""What the benchmarks of speed work on: the same for all that is compared."""

import pandas as pd

from benchmarks.materials import draw_triples


def test_triples_are_drawn_from_a_folder_of_collections(tmp_path):
    folder = tmp_path / "vaswani"
    folder.mkdir()
    numbers = [str(number) for number in range(9)]
    documents = pd.DataFrame({"docno": numbers, "text": [f"document {number}" for number in numbers]})
    documents.to_json(folder / "docs.jsonl.gz", orient="records", lines=True)
    queries = pd.DataFrame({"qid": numbers, "query": [f"query {number}" for number in numbers]})
    queries.to_csv(folder / "all.topics.tsv", sep="\t", index=False)
    qrels = pd.DataFrame({"qid": numbers, "docno": numbers, "label": [1] * 8 + [0]})
    qrels.to_csv(folder / "all.qrels.tsv", sep="\t", index=False)
    triples = draw_triples(tmp_path, 8)
    assert set(triples["positive"]) == {f"document {number}" for number in range(8)}
    assert (triples["query"].str[-1] == triples["positive"].str[-1]).all()
    assert set(triples["negative"]) <= set(documents["text"])
    assert triples.equals(draw_triples(tmp_path, 8))
