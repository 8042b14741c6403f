"""The loss against the authors' released values, against finite differences, and against its own definition."""

import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_selfdistill.losses import (
    ERRORS,
    AdaptiveMarginLoss,
    normalize,
    trusting_weights,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "released_loss.json").read_text())["cases"]
OPTIONS = {
    "target": [0.3, "adaptive", "distributed", "trusting"],
    "in_batch": [False, True],
    "error": list(ERRORS),
    "detach_target": [False, True],
    "pairing": ["query", "released"],
}


def is_defined(target, in_batch, error, detach_target, pairing):
    whole_batch = target in ("distributed", "trusting")
    return not (whole_batch and in_batch) and (in_batch or pairing == "query")


DEFINED = [values for values in itertools.product(*OPTIONS.values()) if is_defined(*values)]
VARIANTS = [dict(zip(OPTIONS, values, strict=True)) for values in DEFINED]
PLAIN_VARIANTS = [options for options in VARIANTS if options["target"] != "trusting"]


def embeddings(batch=4, dim=5, negatives=1, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, dim), (batch, dim), (batch, negatives, dim)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def cosine(x, y):
    return float(x @ y / (x.norm() * y.norm()))


PHI = {"l2": lambda x: x * x, "l1": abs, "soft": lambda x: math.log1p(math.exp(-x)), "hinge": lambda x: min(x, 0) ** 2}


def definition(query, positive, negative, *, target, in_batch, error, detach_target, pairing):
    """Compute the loss by its definition, pair by pair."""
    phi = PHI[error]
    if target == "trusting":
        return trusting_definition(query, positive, negative, phi)
    rows, number = negative.shape[:2]
    errors = []
    for i, owner, k in itertools.product(range(rows), range(rows), range(number)):
        if target != "distributed" and not in_batch and owner != i:
            continue
        document = negative[owner, k]
        positive_row = owner if target == "distributed" or pairing == "released" else i
        negative_row = owner if target == "distributed" else i
        margin = cosine(query[positive_row], positive[positive_row]) - cosine(query[negative_row], document)
        asked = target if isinstance(target, float) else (1 + cosine(positive[i], document)) / 2
        errors.append(phi(margin - asked))
    return statistics.fmean(errors)


def trusting_definition(query, positive, negative, phi):
    """Compute the trusting loss by its definition, query by query."""
    documents = [*positive, *negative.reshape(-1, negative.shape[-1])]
    others = [documents[:i] + documents[i + 1 :] for i in range(len(query))]
    scores = [[cosine(q, document) for document in row] for q, row in zip(query, others, strict=True)]
    deviation = statistics.pstdev(itertools.chain(*scores))
    losses = []
    for i, row in enumerate(scores):
        margins = [cosine(query[i], positive[i]) - score for score in row]
        targets = [(1 + cosine(positive[i], document)) / 2 for document in others[i]]
        somers = statistics.fmean((margin > 0) - (margin < 0) for margin in margins)
        weights = [math.exp(max(somers, 0) * score / deviation) for score in row]
        errors = [phi(margin - target) for margin, target in zip(margins, targets, strict=True)]
        weighted = [weight * error for weight, error in zip(weights, errors, strict=True)]
        losses.append(sum(weighted) / sum(weights))
    return statistics.fmean(losses)


def test_there_are_81_golden_cases():
    assert len(GOLDEN) == 81


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['target']}-{c['in_batch']}-{c['error']}-{c['batch']}")
def test_agrees_with_the_released_loss(case):
    pairing = "released" if case["in_batch"] else "query"
    loss = AdaptiveMarginLoss(case["target"], case["in_batch"], case["error"], pairing=pairing)
    inputs = {}
    for name in ("query", "positive", "negative"):
        inputs[name] = torch.tensor(case[name], dtype=torch.float64, requires_grad=True)
    value = loss(**inputs)
    value.backward()
    assert value.item() == pytest.approx(case["loss"], abs=1e-6)
    for name, tensor in inputs.items():
        expected = torch.tensor(case[f"grad_{name}"], dtype=torch.float64)
        torch.testing.assert_close(tensor.grad, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("negatives", [1, 3])
def test_equals_its_definition(options, negatives):
    tensors = embeddings(negatives=negatives)
    expected = definition(*(tensor.detach() for tensor in tensors), **options)
    assert AdaptiveMarginLoss(**options)(*tensors).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("options", [o for o in PLAIN_VARIANTS if not o["detach_target"]], ids=str)
@pytest.mark.parametrize("negatives", [1, 2])
def test_gradcheck(options, negatives):
    assert torch.autograd.gradcheck(AdaptiveMarginLoss(**options), embeddings(3, 4, negatives))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("detach_target", [False, True])
def test_weights_get_no_gradient(error, detach_target):
    """The gradient equals that of the weighted error with the same weights held constant."""
    tensors = embeddings(negatives=2)
    loss = AdaptiveMarginLoss("trusting", error=error, detach_target=detach_target)
    gradients = torch.autograd.grad(loss(*tensors), tensors)

    _, margin, target = AdaptiveMarginLoss("trusting").terms(*tensors)
    score = torch.cosine_similarity(tensors[0], tensors[1])[:, None] - margin
    weights = trusting_weights(margin.detach(), score.detach())
    error_of_pairs = ERRORS[error](margin - (target.detach() if detach_target else target))
    expected = torch.autograd.grad((weights * error_of_pairs).sum(dim=1).mean(), tensors)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("options", [{"target": 0.3}, {"target": "adaptive"}, {"target": "trusting"}], ids=str)
def test_hinge_never_pulls_a_margin_back(options):
    """An encoder whose margins all exceed their targets is pulled back by l2, and left as it is by the hinge."""
    query = torch.eye(3, 4, dtype=torch.float64).requires_grad_()
    tensors = query, query.detach() + 0.1, -torch.ones(3, 4, dtype=torch.float64)
    terms = AdaptiveMarginLoss(**options).terms(*tensors)
    assert (terms.margin > terms.target).all()
    (pulled,) = torch.autograd.grad(terms.loss, query)
    (left,) = torch.autograd.grad(AdaptiveMarginLoss(**options, error="hinge")(*tensors), query)
    assert pulled.abs().sum() > 0
    assert left.abs().sum() == 0


def test_weights_are_equal_where_the_positive_does_not_stand_out():
    score = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 3)
    margin = torch.tensor([[0.9], [0.25], [0.0]]) - score
    trusted, middle, below = trusting_weights(margin, score)
    assert trusted.tolist() == sorted(trusted.tolist())
    assert trusted[-1] > 3 * trusted[0]
    torch.testing.assert_close(torch.stack([middle, below]), torch.full((2, 4), 0.25))


@pytest.mark.parametrize("options", [o for o in PLAIN_VARIANTS if o["detach_target"]], ids=str)
def test_detached_target_gets_no_gradient(options):
    """The gradient equals that of the error between the margins and the same targets held constant."""
    tensors = embeddings()
    loss = AdaptiveMarginLoss(**options)
    constant = loss.terms(*tensors).target.clone()
    gradients = torch.autograd.grad(loss(*tensors), tensors)

    margin = AdaptiveMarginLoss(**{**options, "detach_target": False}).terms(*tensors).margin
    expected = torch.autograd.grad(ERRORS[options["error"]](margin - constant).mean(), tensors)
    torch.testing.assert_close(gradients, expected)


def test_the_gradient_flows_through_the_target_by_default():
    tensors = embeddings()
    flowing = torch.autograd.grad(AdaptiveMarginLoss("adaptive")(*tensors), tensors)
    detached = torch.autograd.grad(AdaptiveMarginLoss("adaptive", detach_target=True)(*tensors), tensors)
    assert not torch.allclose(flowing[1], detached[1])


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(options, dtype):
    tensors = [tensor.detach().to(dtype) for tensor in embeddings(8, 64)]
    loss = AdaptiveMarginLoss(**options)
    with torch.autocast("cpu", dtype=dtype):
        terms = loss.terms(*tensors)
    assert {terms.loss.dtype, terms.margin.dtype, terms.target.dtype} == {torch.float32}
    exact = loss(*(tensor.double() for tensor in tensors))
    assert terms.loss.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_zero_vectors_give_no_nan(options):
    tensors = [torch.zeros(shape, requires_grad=True) for shape in [(2, 3), (2, 3), (2, 2, 3)]]
    value = AdaptiveMarginLoss(**options)(*tensors)
    value.backward()
    assert value.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)


@pytest.mark.parametrize("target", [0.3, "adaptive"])
def test_one_triple_in_batch_is_the_triple_itself(target):
    tensors = embeddings(batch=1)
    alone, in_batch = (AdaptiveMarginLoss(target, in_batch)(*tensors) for in_batch in (False, True))
    assert alone.item() == pytest.approx(in_batch.item())
    assert AdaptiveMarginLoss("adaptive")(*tensors).item() == pytest.approx(
        AdaptiveMarginLoss("distributed")(*tensors).item()
    )


@settings(deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(0, 1000),
    st.sampled_from(VARIANTS),
)
def test_bounds_and_scale(batch, dim, negatives, seed, options):
    """Targets are in [0, 1], margins in [-2, 2], and only directions matter."""
    tensors = embeddings(batch, dim, negatives, seed)
    loss, margin, target = AdaptiveMarginLoss(**options).terms(*tensors)
    assert target.min() >= -1e-9
    assert target.max() <= 1 + 1e-9
    assert margin.abs().max() <= 2 + 1e-9
    scaled = AdaptiveMarginLoss(**options)(*(7.5 * tensor for tensor in tensors))
    assert scaled.item() == pytest.approx(loss.item())


def test_two_dimensional_negatives_are_one_a_query():
    query, positive, negative = embeddings()
    loss = AdaptiveMarginLoss()
    assert loss(query, positive, negative[:, 0]).item() == loss(query, positive, negative).item()


def test_normalize_keeps_float64():
    assert normalize(torch.ones(1, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "adaptiv"}, ValueError, "got 'adaptiv'"),
        ({"target": True}, ValueError, "got True"),
        ({"target": None}, ValueError, "got None"),
        ({"in_batch": "no"}, ValueError, "in_batch must be a valid boolean, got 'no'"),
        ({"detach_target": None}, ValueError, "detach_target must be a valid boolean, got None"),
        ({"target": 0}, ValueError, r"\(0, 2\]"),
        ({"target": 2.1}, ValueError, r"\(0, 2\]"),
        ({"target": -0.5}, ValueError, r"\(0, 2\]"),
        ({"target": float("nan")}, ValueError, r"\(0, 2\]"),
        ({"error": "huber"}, ValueError, "'l1'.*got 'huber'"),
        ({"target": "distributed", "in_batch": True}, ValueError, "not defined with in_batch=True"),
        ({"target": "trusting", "in_batch": True}, ValueError, "not defined with in_batch=True"),
        ({"target": "adaptive", "pairing": "released"}, ValueError, "in_batch=True"),
        ({"target": "adaptive", "in_batch": True, "pairing": "own"}, ValueError, "got 'own'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        AdaptiveMarginLoss(**options)


@pytest.mark.parametrize(
    ("query", "positive", "negative"),
    [
        ((2, 3), (3, 3), (2, 3)),
        ((2, 3), (2, 4), (2, 3)),
        ((2, 3), (2, 3), (4, 3)),
        ((2, 3), (2, 3), (2, 4)),
        ((3,), (3,), (3,)),
        ((2, 3), (2, 3), (2, 1, 1, 3)),
    ],
)
def test_shapes_that_do_not_agree(query, positive, negative):
    with pytest.raises(ValueError, match="expected query .B, D.*got query"):
        AdaptiveMarginLoss()(torch.ones(query), torch.ones(positive), torch.ones(negative))


@pytest.mark.parametrize("shapes", [((0, 3), (0, 3), (0, 3)), ((2, 3), (2, 3), (2, 0, 3)), ((2, 0), (2, 0), (2, 0))])
def test_empty_batch(shapes):
    with pytest.raises(ValueError, match="B, K and D of at least 1, got query"):
        AdaptiveMarginLoss()(*map(torch.ones, shapes))


@pytest.mark.parametrize("wrong", [torch.ones(2, 3, dtype=torch.int64), [[1.0, 2.0, 3.0]]])
def test_inputs_that_are_not_float_tensors(wrong):
    with pytest.raises(TypeError, match="positive must be a floating point tensor, got"):
        AdaptiveMarginLoss()(torch.ones(2, 3), wrong, torch.ones(2, 3))
