"""Architectures: tiny models of each, from the folder of a language model to the results of a search."""

import numpy as np
import peft
import pytest
import torch
from matplotlib.figure import Figure
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillTrainer

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 3 + len(LETTERS)}
SIZES |= {"intermediate_size": 64, "initializer_range": 0.2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
ENCODERS = {"bert": 66, "distilbert": 66, "modernbert": 66, "xlm-roberta": 64, "mpnet": 64, "t5": None}
"""The number of usable positions: RoBERTa and its like have none for the padding token and those before it."""

DECODERS = {"gpt2": {}, "qwen2": GROUPED, "qwen3": GROUPED, "gemma3_text": GROUPED}
ARCHITECTURES = {
    **{kind: ({"model_type": kind}, "cls", positions) for kind, positions in ENCODERS.items()},
    **{kind: ({"model_type": kind, **options}, "lasttoken", 66) for kind, options in DECODERS.items()},
    "EmbeddingGemma": ({"model_type": "gemma3_text", "use_bidirectional_attention": True} | GROUPED, "cls", 66),
    "static": ({}, None, None),
    "router": ({"model_type": "bert"}, None, 66),
}
TEXTS = ["sort the rows", "plot", ""]
LONG = "sort the rows of a table by column and return the mean value of an array"
PROMPT = "Instruct: find code\nQuery: "
TRIPLES = [(f"sort {thing}", f"sort the rows of a {thing}", f"plot a {thing}") for thing in ("table", "file", "row")]
CORPUS = [{"docno": verb, "text": f"{verb} the value"} for verb in ("sort", "plot", "read")]


def letters(*special):
    """Make a tokenizer for letters, which pads on the left, with special tokens around a text if there are several."""
    tokens = [*special, *LETTERS]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    options = {"eos_token": special[-1], "padding_side": "left"}
    if len(special) > 1:
        known = [(token, number) for number, token in enumerate(special)]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=known)
        options |= {"cls_token": "<s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def make(folder, config, pooling):
    """Write a model that was not trained: a language model, or layers if there is no pooling."""
    tokenizer = letters("<s>", "<pad>", "</s>")
    torch.manual_seed(0)
    if config:
        positions = {} if config["model_type"] == "t5" else {"max_position_embeddings": 66}
        AutoModel.from_config(AutoConfig.for_model(**SIZES | positions | config)).save_pretrained(folder)
        # those of causal models have neither a padding token nor tokens around a text
        (letters("<|endoftext|>") if pooling == "lasttoken" else tokenizer).save_pretrained(folder)
    if pooling is None:
        layers = [StaticEmbedding(tokenizer, embedding_dim=32)]
        if config:
            layers = [Router.for_query_document(layers, [Transformer(folder), Pooling(32)])]
        SentenceTransformer(modules=layers, device="cpu").save(folder)


# PEFT says that it sees the kind of the layers of GPT-2 by itself
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
@pytest.mark.parametrize(("config", "pooling", "positions"), ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_models_of_all_architectures_train_and_search(tmp_path, monkeypatch, config, pooling, positions):
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    monkeypatch.setattr("pyterrier_selfdistill.training.loop.MANY_ROWS", 100)
    folder, options = str(tmp_path / "untrained"), {"device": "cpu", "dtype": "float32"}
    make(folder, config, pooling)
    base = SelfDistillBiEncoder.from_pretrained(folder, **options)
    assert getattr(base.model[1], "pooling_mode", None) == pooling
    assert base.document_length == positions
    if positions:
        cut = SelfDistillBiEncoder.from_pretrained(folder, document_length=positions, **options)
        np.testing.assert_array_equal(cut.encode_docs([LONG]), base.encode_docs([LONG]))
        with pytest.raises(ValueError, match=f"document_length .* 1 to {positions},"):
            SelfDistillBiEncoder.from_pretrained(folder, document_length=positions + 1)

    for encode in (base.encode_docs, base.encode_queries, lambda texts: base.encode_queries_torch(texts).detach()):
        together = encode([*TEXTS, LONG])
        np.testing.assert_allclose(together[:-1], [encode([text])[0] for text in TEXTS], atol=1e-5)
        assert abs(together[0] - together[1]).max() > 0.01
    prompted = base.with_prompts(query=PROMPT)
    np.testing.assert_array_equal(prompted.encode_queries(["plot"]), base.encode_queries([f"{PROMPT}plot"]))

    arguments = {"max_steps": 2, "learning_rate": 0.01, "verbose": False, "save_strategy": "no"}
    trained = SelfDistillTrainer(prompted, tmp_path / "run", **arguments).fit_triples(TRIPLES).encoder
    loaded = SelfDistillBiEncoder(trained.save(tmp_path / "model"), **options)
    assert loaded == trained != prompted
    vectors = loaded.encode_docs(TEXTS)
    read = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode_document(TEXTS[:-1])
    np.testing.assert_allclose(vectors[:-1], read, atol=1e-5)
    found = loaded.build_retriever(CORPUS, tmp_path / "index.flex").search("read")["docno"].tolist()
    cosines = loaded.encode_docs([document["text"] for document in CORPUS]) @ loaded.encode_queries(["read"])[0]
    assert found == [CORPUS[position]["docno"] for position in np.argsort(-cosines)]
    lora = {"adapter": peft.LoraConfig(r=2, target_modules="all-linear"), **arguments}
    if pooling is None:
        with pytest.raises(ValueError, match="language model to adapt"):
            SelfDistillTrainer(loaded, tmp_path / "lora", **lora)
    else:
        adapted = SelfDistillTrainer(loaded, tmp_path / "lora", **lora).fit_triples(TRIPLES).encoder
        assert SelfDistillBiEncoder(tmp_path / "lora/adapter", **options).merge_adapter() == adapted != loaded
