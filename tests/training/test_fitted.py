"""What a trainer offers beside fitting: errors before, and scores as any transformer."""

import pytest

from pyterrier_selfdistill import NotFittedError


def test_what_needs_a_trained_encoder_says_so_before(make, collection):
    trainer = make()
    uses = [
        lambda: trainer.encoder,
        trainer.plot,
        lambda: trainer(collection.results),
        lambda: trainer(collection.topics),
    ]
    for use in uses:
        with pytest.raises(NotFittedError, match="call fit or fit_triples"):
            use()
    assert trainer.history.empty


def test_trainer_is_a_transformer(make, conforms):
    conforms(make())
