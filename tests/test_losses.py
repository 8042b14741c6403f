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
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "released_loss.json").read_text())["cases"]
OPTIONS = {
    "target": [0.3, "adaptive", "distributed"],
    "in_batch": [False, True],
    "error": list(ERRORS),
    "detach_target": [False, True],
    "pairing": ["query", "released"],
}


def is_defined(target, in_batch, error, detach_target, pairing):
    return not (target == "distributed" and in_batch) and (in_batch or pairing == "query")


DEFINED = [values for values in itertools.product(*OPTIONS.values()) if is_defined(*values)]
VARIANTS = [dict(zip(OPTIONS, values, strict=True)) for values in DEFINED]


def embeddings(batch=4, dim=5, negatives=1, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, dim), (batch, dim), (batch, negatives, dim)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def cosine(x, y):
    return float(x @ y / (x.norm() * y.norm()))


PHI = {"l2": lambda x: x * x, "l1": abs, "soft": lambda x: math.log1p(math.exp(-x))}


def definition(query, positive, negative, *, target, in_batch, error, detach_target, pairing):
    """Compute the loss by its definition, pair by pair."""
    phi = PHI[error]
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


@pytest.mark.parametrize("options", [o for o in VARIANTS if not o["detach_target"]], ids=str)
@pytest.mark.parametrize("negatives", [1, 2])
def test_gradcheck(options, negatives):
    assert torch.autograd.gradcheck(AdaptiveMarginLoss(**options), embeddings(3, 4, negatives))


@pytest.mark.parametrize("options", [o for o in VARIANTS if o["detach_target"]], ids=str)
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
