"""What is put before texts: an encoder with other prompts than its model has, such as those of one collection.

Where several collections train one model, each may say with its prompts what its queries ask for. The model has one
pair of prompts, those that it is saved with; an encoder with the prompts of a collection is the same model under
another checksum, since it makes other vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field
from sentence_transformers import SentenceTransformer

from .compat import remove_autocast
from .options import Expected, checked
from .persistence import set_prompts
from .variants import HasVariants

RoleName = Annotated[str, Field(pattern="^(query|document)$")]

PromptsByCollection = Annotated[
    Mapping[str, Mapping[RoleName, str]],
    Expected("prompts by collection and role, such as {'a': {'query': 'question: ', 'document': 'answer: '}}"),
]

NO_PROMPTS: PromptsByCollection = {}
"""No collection has prompts of its own."""


class TakesPrompts(HasVariants):
    """An encoder that is used with other prompts."""

    @checked
    def with_prompts(self, *, query: str | None = None, document: str | None = None) -> Self:
        """Make an encoder with other prompts that shares the weights of this one.

        Its checksum is another one, so that an index remembers with which prompts it was built; :meth:`save` writes it
        with its prompts.

        Args:
            query: What to put before each query, ``""`` for nothing; None leaves the prompt as it is.
            document: What to put before each document, likewise.

        Returns:
            The encoder.

        Example:
            >>> questions = encoder.with_prompts(query="query: ")
            >>> questions.model.prompts["query"], encoder.model.prompts["query"]
            ('query: ', '')
            >>> questions == encoder, questions.model[0] is encoder.model[0]
            (False, True)
        """
        return self._variant(prompted(self.model, {"query": query, "document": document}))


def prompted(model: SentenceTransformer, prompts: Mapping[str, str | None]) -> SentenceTransformer:
    """Make a model with other prompts that shares the layers of this one.

    Args:
        model: The model.
        prompts: The prompts of ``query`` and ``document``; those that are None or missing stay as they are.

    Returns:
        The model; what becomes of the weights of one becomes of those of the other.
    """
    changed = copy.copy(model)
    # in training it would compute as the model it is a copy of does in its steps
    remove_autocast(changed)
    changed.prompts = dict(model.prompts)
    set_prompts(changed, prompts)
    return changed
