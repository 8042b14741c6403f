import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from pyterrier_selfdistill.losses import SCALES, CalibratedLoss, calibrated_scale

GOLDEN = json.loads((Path(__file__).parent / "golden" / "calibrated_loss.json").read_text())["cases"]


def embeddings(batch=4, dim=5, negatives=1, seed=0, alike=0.0):
    """A batch in which queries are like their positives, as far as ``alike`` says."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    positive = torch.randn(batch, dim, generator=generator, dtype=torch.float64) + alike * query
    negative = torch.randn(batch, negatives, dim, generator=generator, dtype=torch.float64)
    return [tensor.requires_grad_() for tensor in (query, positive, negative)]


def margins_by_definition(query, positive, negative):
    """Compute the margins pair by pair."""
    documents = [*positive, *negative.reshape(-1, negative.shape[-1])]
    rows = []
    for i, q in enumerate(query):
        own = torch.cosine_similarity(q, positive[i], dim=0)
        others = documents[:i] + documents[i + 1 :]
        rows.append([float(own - torch.cosine_similarity(q, document, dim=0)) for document in others])
    return np.array(rows)


def costs(margins, scale):
    """Compute the mean cross-entropy of the batch, and its sum with that of one query more."""
    logits = np.column_stack([np.zeros(len(margins)), -scale * margins])
    partition = np.log(np.exp(logits).sum(axis=1))
    one_more = (partition + scale * margins.mean(axis=1)).mean()
    return partition.mean(), partition.sum() + one_more


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("alike", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("batch", [1, 4, 9])
def test_equals_its_definition(negatives, alike, batch):
    tensors = embeddings(batch, negatives=negatives, alike=alike)
    margins = margins_by_definition(*(tensor.detach() for tensor in tensors))
    best = minimize_scalar(
        lambda logarithm: costs(margins, math.exp(logarithm))[1], bounds=np.log(SCALES), method="bounded"
    )
    loss, margin, scale = CalibratedLoss().terms(*tensors)
    assert np.sort(margin.detach().numpy(), axis=1) == pytest.approx(np.sort(margins, axis=1))
    assert scale.item() == pytest.approx(math.exp(best.x), rel=1e-3)
    assert loss.item() == pytest.approx(costs(margins, scale.item())[0])


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['batch']}-{case['negatives']}")
def test_golden_values(case):
    tensors = {name: torch.tensor(case[name], dtype=torch.float64).requires_grad_() for name in TENSORS}
    terms = CalibratedLoss().terms(**tensors)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(case["loss"], abs=1e-9)
    assert terms.scale.item() == pytest.approx(case["scale"], abs=1e-6)
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor.grad, torch.tensor(case[f"grad_{name}"], dtype=torch.float64))


TENSORS = ("query", "positive", "negative")


def test_the_loss_is_the_same_at_any_spread_of_the_margins():
    margin = torch.tensor([[0.5, 0.4, 0.1], [0.3, -0.1, 0.2]], dtype=torch.float64)
    scale, larger = calibrated_scale(margin), calibrated_scale(margin / 10)
    assert larger.item() == pytest.approx(10 * scale.item(), rel=1e-4)


def test_the_better_a_batch_is_told_apart_the_larger_is_the_scale():
    scales = [CalibratedLoss().terms(*embeddings(16, alike=alike)).scale.item() for alike in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert scales == sorted(scales)
    assert scales[0] < 3
    assert scales[-1] > 2 * scales[0]


def test_perfect_batches_have_a_finite_scale():
    margin = torch.full((4, 7), 0.5)
    assert 1 < calibrated_scale(margin) < 50


@pytest.mark.parametrize("margin", [-0.5, 0.0])
def test_batches_that_are_ranked_the_wrong_way_round_are_still_learned_from(margin):
    query, positive, negative = embeddings(alike=-2.0)
    loss, _, scale = CalibratedLoss().terms(query, positive, negative)
    loss.backward()
    assert scale.item() == pytest.approx(1, abs=1e-3)
    assert query.grad.abs().sum() > 0
    assert calibrated_scale(torch.full((2, 3), margin)).isfinite()


def test_no_gradient_flows_through_the_scale():
    tensors = embeddings(alike=1.0)
    loss, margin, scale = CalibratedLoss().terms(*tensors)
    assert not scale.requires_grad
    gradients = torch.autograd.grad(loss, tensors, retain_graph=True)
    constant = torch.log1p(torch.exp(-scale.item() * margin).sum(dim=1)).mean()
    torch.testing.assert_close(gradients, torch.autograd.grad(constant, tensors))


def test_float32_under_autocast():
    tensors = [tensor.detach().float() for tensor in embeddings(alike=1.0)]
    expected = CalibratedLoss()(*tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CalibratedLoss()(*tensors).equal(expected)


def test_bad_batches_are_refused():
    query, positive, negative = embeddings()
    with pytest.raises(ValueError, match="expected query"):
        CalibratedLoss()(query, positive[:2], negative)
