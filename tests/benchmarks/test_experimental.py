import math

import pytest
import torch

from benchmarks.experimental import CriticalLoss, critical_temperature
from pyterrier_selfdistill import AdaptiveMarginLoss


@pytest.fixture
def batch():
    """Queries, positives and negatives of six triples."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, 16, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.fixture
def scores(batch):
    """The cosines of the six queries with all twelve documents."""
    query, positive, negative = map(torch.nn.functional.normalize, batch)
    return query @ torch.cat([positive, negative]).T


OTHERS = ~torch.eye(6, 12, dtype=torch.bool)
"""The pairs of a query and a document that is not its own positive."""


def test_critical_temperature(scores):
    score = scores[OTHERS].reshape(6, 11)
    expected = score.std().item() / math.sqrt(2 * math.log(11))
    assert critical_temperature(score).item() == pytest.approx(expected)


@pytest.mark.parametrize("form", CriticalLoss.FORMS)
def test_critical_loss_does_not_depend_on_lengths_and_has_gradients(batch, form):
    query, positive, negative = batch
    loss = CriticalLoss(form).terms(query, positive, negative).loss
    scaled = CriticalLoss(form).terms(2 * query, 3 * positive, 4 * negative).loss
    assert loss.item() == pytest.approx(scaled.item())
    loss.backward()
    for embeddings in batch:
        assert torch.isfinite(embeddings.grad).all()
        assert embeddings.grad.abs().sum() > 0


def test_softmax_is_infonce_at_the_critical_temperature(batch, scores):
    temperature = critical_temperature(scores[OTHERS].reshape(6, 11))
    expected = torch.nn.functional.cross_entropy(scores / temperature, torch.arange(6))
    assert CriticalLoss("softmax").terms(*batch).loss.item() == pytest.approx(expected.item())


def test_uniform_is_the_adaptive_loss_with_other_positives_as_negatives(batch):
    query, positive, negative = batch
    documents = torch.cat([positive, negative])
    losses = []
    for row in range(6):
        others = [column for column in range(12) if column != row]
        loss = AdaptiveMarginLoss("adaptive", True)(query[[row]], positive[[row]], documents[others][None])
        losses.append(loss)
    ours = CriticalLoss("uniform").terms(*batch).loss
    assert ours.item() == pytest.approx(torch.stack(losses).mean().item())


def test_critical_loss_has_the_pairs_of_the_trusting_target(batch):
    ours = CriticalLoss("weighted").terms(*batch)
    trusting = AdaptiveMarginLoss("trusting").terms(*batch)
    torch.testing.assert_close(ours.margin, trusting.margin)
    torch.testing.assert_close(ours.target, trusting.target)


def test_critical_loss_refuses_an_unknown_form():
    with pytest.raises(ValueError, match="'other' is unknown"):
        CriticalLoss("other")


def test_softmax_in_both_directions_adds_the_one_over_queries(batch, scores):
    temperature = critical_temperature(scores[OTHERS].reshape(6, 11))
    forward = torch.nn.functional.cross_entropy(scores / temperature, torch.arange(6))
    backward = torch.nn.functional.cross_entropy(scores[:, :6].T / temperature, torch.arange(6))
    loss = CriticalLoss("softmax, both directions").terms(*batch).loss
    assert loss.item() == pytest.approx((forward + backward).item() / 2)


def test_trusting_softmax_learns_nothing_from_a_query_whose_positive_does_not_stand_out(batch):
    query, positive, negative = batch
    with torch.no_grad():
        positive[0] = -query[0]
    CriticalLoss("softmax, trusting").terms(query, positive, negative).loss.backward()
    assert query.grad[0].abs().sum() == 0
    assert query.grad[1:].abs().sum() > 0
