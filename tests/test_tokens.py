"""Texts as batches of tokens: nothing is lost, and little is padding."""

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from pyterrier_selfdistill import SelfDistillBiEncoder
from pyterrier_selfdistill.encoder.steps import batches_of_like_length, tokenize

TEXTS = ["plot", "sort the rows of a table", "", "aaaaaaaaaa", "sort", "sort the columns"]


def rows_of(batch):
    """List the tokens of each text, without padding."""
    features = batch.features
    return [
        ids[mask == 1].tolist() for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("window", [2, 1024])
def test_batches_have_the_tokens_of_each_text(encoder, monkeypatch, side, window):
    monkeypatch.setattr("pyterrier_selfdistill.encoder.steps.WINDOW", window)
    encoder.model.tokenizer.padding_side = side
    found = {}
    for batch in batches_of_like_length(encoder.model, TEXTS, "document", 2):
        found |= dict(zip(batch.texts, rows_of(batch), strict=True))
    assert found == {text: encoder.model.tokenizer(text)["input_ids"] for text in TEXTS}


def test_batches_are_sorted_by_tokens_and_as_long_as_their_longest_text(encoder):
    batches = list(batches_of_like_length(encoder.model, TEXTS, "document", 2))
    # of the ten letters each is a token
    assert [batch.texts for batch in batches] == [
        ["aaaaaaaaaa", "sort the rows of a table"],
        ["sort the columns", "plot"],
        ["sort", ""],
    ]
    assert [batch.features["input_ids"].shape for batch in batches] == [(2, 12), (2, 6), (2, 3)]


def test_tokens_of_a_text_are_cut_and_prompted_by_its_role(language_model):
    options = {"query_length": 4, "query_prompt": "query: ", "document_prompt": "d: "}
    model = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", **options).model
    words = model.tokenizer.convert_ids_to_tokens(tokenize(model, ["plot a file"], "query")["input_ids"][0])
    assert words == ["[CLS]", "query", ":", "[SEP]"]
    words = model.tokenizer.convert_ids_to_tokens(tokenize(model, ["plot a file"], "document")["input_ids"][0])
    assert words == ["[CLS]", "d", ":", "plot", "a", "file", "[SEP]"]


def test_prompts_are_those_of_sentence_transformers(tiny_model):
    tiny_model.prompts = {"passage": "d: ", "clustering": "query: "}
    tiny_model.default_prompt_name = "clustering"
    for role, encode in {"document": tiny_model.encode_document, "query": tiny_model.encode_query}.items():
        vectors = tiny_model(tokenize(tiny_model, ["plot"], role))["sentence_embedding"]
        torch.testing.assert_close(vectors, encode(["plot"], convert_to_tensor=True), atol=1e-6, rtol=0)


def test_models_with_features_of_their_own_are_batched_by_characters(encoder):
    words = StaticEmbedding(encoder.model.tokenizer.backend_tokenizer, embedding_dim=8)
    static = SelfDistillBiEncoder(SentenceTransformer(modules=[words], device="cpu"))
    batches = list(batches_of_like_length(static.model, TEXTS, "document", 4))
    assert [len(batch.texts) for batch in batches] == [4, 2]
    expected = static.model.encode_document(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(torch.from_numpy(static.encode_docs(TEXTS)), expected, atol=1e-6, rtol=0)
