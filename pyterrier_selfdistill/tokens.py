"""From texts to batches of tokens, those of like length together, so that little of a batch is padding.

Texts are tokenized once, many together; what is sorted by length and cut into batches are their tokens. Sorted by
characters, a sixth of a batch is padding where texts are short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from sentence_transformers import SentenceTransformer

WINDOW = 1024
"""How many texts are tokenized together; of 8,192 tokens each, that takes 200 MB."""

TOKENS = {"input_ids", "attention_mask", "token_type_ids"}
"""What a tokenizer gives for each token of a text."""

PROMPTS = {"query": ["query"], "document": ["document", "passage", "corpus"]}
"""The names of prompts for what texts are; the first that a model has is taken, as sentence-transformers does."""

Role = Literal["query", "document"]


class Batch(NamedTuple):
    """Texts that are encoded together.

    Attributes:
        texts: The texts.
        features: What a sentence-transformers model takes for them.
    """

    texts: list[str]
    features: dict[str, Any]


def tokenize(model: SentenceTransformer, texts: list[str], role: Role) -> dict[str, Any]:
    """Tokenize texts, with the prompt and the length for what they are.

    Args:
        model: The model.
        texts: The texts.
        role: What they are.

    Returns:
        What the model takes.

    Example:
        >>> tokenize(encoder.model, ["sort the rows", "plot"], "query")["input_ids"].shape
        torch.Size([2, 5])
    """
    names = [*PROMPTS[role], model.default_prompt_name]
    prompts = [model.prompts[name] for name in names if name in model.prompts]
    return model.preprocess(texts, prompt=next(iter(prompts), None), task=role)


def batches_of_like_length(model: SentenceTransformer, texts: list[str], role: Role, size: int) -> Iterator[Batch]:
    """Iterate over batches, the longest texts first, so that what does not fit into memory fails at once.

    Args:
        model: The model.
        texts: The texts.
        role: What they are.
        size: How many texts a batch has.

    Yields:
        The batches.

    Example:
        >>> texts = ["plot", "sort the rows of a table", "sort", "sort the columns"]
        >>> [batch.texts for batch in batches_of_like_length(encoder.model, texts, "document", size=2)]
        [['sort the rows of a table', 'sort the columns'], ['plot', 'sort']]
    """
    texts = sorted(texts, key=len, reverse=True)
    for start in range(0, len(texts), WINDOW):
        window = texts[start : start + WINDOW]
        features = tokenize(model, window, role)
        if _is_plain(features, len(window)):
            yield from _cut(window, features, size)
            continue
        # of other models' features nobody knows what can be cut
        for first in range(0, len(window), size):
            batch = window[first : first + size]
            yield Batch(batch, tokenize(model, batch, role))


def _cut(texts: list[str], features: dict[str, Any], size: int) -> Iterator[Batch]:
    """Cut tokenized texts into batches, without columns that are only padding."""
    mask = features["attention_mask"]
    longest_first = torch.argsort(mask.sum(dim=1), descending=True, stable=True)
    for rows in longest_first.split(size):
        # padding may be on either side
        is_used = mask[rows].any(dim=0)
        # tokenizers that add no token of their own leave nothing of empty texts
        is_used[0] = True
        batch = dict(features)
        for name in TOKENS & features.keys():
            batch[name] = features[name][rows][:, is_used]
        yield Batch([texts[row] for row in rows.tolist()], batch)


def _is_plain(features: dict[str, Any], count: int) -> bool:
    """Tell whether features are a row of tokens for each text, and nothing else that has a shape."""
    tensors = {name for name, value in features.items() if isinstance(value, torch.Tensor)}
    if not {"input_ids", "attention_mask"} <= tensors <= TOKENS:
        return False
    shape = features["attention_mask"].shape
    if len(shape) != 2 or shape[0] != count or shape[1] == 0:
        return False
    return all(features[name].shape == shape for name in tensors)
