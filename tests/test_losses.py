"""Losses of vectors: the authors' released values, the definitions in plain Python, and finite differences."""

import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from pyterrier_selfdistill import AdaptiveMarginLoss, CalibratedLoss
from pyterrier_selfdistill.losses import SCALES, calibrated_scale, normalize

FOLDER = Path(__file__).parent / "golden"
RELEASED = json.loads((FOLDER / "released_loss.json").read_text())["cases"]
CALIBRATED = json.loads((FOLDER / "calibrated_loss.json").read_text())["cases"]
TENSORS = ("query", "positive", "negative")
PHI = {"l2": lambda x: x * x, "l1": abs, "soft": lambda x: math.log1p(math.exp(-x))}
OPTIONS = {
    "target": [0.3, "adaptive", "distributed"],
    "in_batch": [False, True],
    "error": list(PHI),
    "detach_target": [False, True],
    "pairing": ["query", "released"],
}
VARIANTS = []
for values in itertools.product(*OPTIONS.values()):
    options = dict(zip(OPTIONS, values, strict=True))
    defined = not options["in_batch"] if options["target"] == "distributed" else True
    if defined and (options["in_batch"] or options["pairing"] == "query"):
        VARIANTS.append(options)
LOSSES = [*(AdaptiveMarginLoss(**options) for options in VARIANTS), CalibratedLoss()]


def embeddings(batch=4, dim=5, negatives=1, seed=0, alike=0.0):
    """Draw a batch in float64, in which queries are like their positives, as far as ``alike`` says."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, dim), (batch, dim), (batch, negatives, dim)
    query, positive, negative = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.requires_grad_() for tensor in (query, positive + alike * query, negative)]


def cosine(x, y):
    return float(x @ y / (x.norm() * y.norm()))


def definition(query, positive, negative, *, target, in_batch, error, detach_target, pairing):
    """Compute the loss by its definition, pair by pair."""
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
        errors.append(PHI[error](margin - asked))
    return statistics.fmean(errors)


# --- golden values ----------------------------------------------------------------------------------------------------


def test_there_are_81_released_cases():
    assert len(RELEASED) == 81


@pytest.mark.parametrize("case", RELEASED, ids=lambda c: f"{c['target']}-{c['in_batch']}-{c['error']}-{c['batch']}")
def test_agrees_with_the_released_loss(case):
    pairing = "released" if case["in_batch"] else "query"
    require_golden(AdaptiveMarginLoss(case["target"], case["in_batch"], case["error"], pairing=pairing), case, 1e-6)


@pytest.mark.parametrize("case", CALIBRATED, ids=lambda case: f"{case['batch']}-{case['negatives']}")
def test_agrees_with_recorded_values_of_the_calibrated_loss(case):
    terms = require_golden(CalibratedLoss(), case, 1e-9)
    assert terms.scale.item() == pytest.approx(case["scale"], abs=1e-6)


def require_golden(loss, case, tolerance):
    inputs = [torch.tensor(case[name], dtype=torch.float64, requires_grad=True) for name in TENSORS]
    terms = loss.terms(*inputs)
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(case["loss"], abs=tolerance)
    for name, tensor in zip(TENSORS, inputs, strict=True):
        expected = torch.tensor(case[f"grad_{name}"], dtype=torch.float64)
        torch.testing.assert_close(tensor.grad, expected, atol=tolerance, rtol=1e-7)
    return terms


# --- definitions and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("negatives", [1, 3])
def test_equals_its_definition(options, negatives):
    tensors = embeddings(negatives=negatives)
    expected = definition(*(tensor.detach() for tensor in tensors), **options)
    assert AdaptiveMarginLoss(**options)(*tensors).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("options", [options for options in VARIANTS if not options["detach_target"]], ids=str)
def test_gradients_are_those_of_finite_differences(options):
    assert torch.autograd.gradcheck(AdaptiveMarginLoss(**options), embeddings(3, 4, negatives=2))


@pytest.mark.parametrize("options", [options for options in VARIANTS if options["detach_target"]], ids=str)
def test_a_detached_target_gets_no_gradient(options):
    """The gradient is that of the loss with the same targets as constants, and not that through the target."""
    tensors = embeddings()
    gradients = torch.autograd.grad(AdaptiveMarginLoss(**options)(*tensors), tensors)
    flowing, margin, target = AdaptiveMarginLoss(**{**options, "detach_target": False}).terms(*tensors)
    difference = margin - target.detach()
    phi = {"l2": torch.square, "l1": torch.abs, "soft": lambda x: torch.log1p(torch.exp(-x))}[options["error"]]
    expected = torch.autograd.grad(phi(difference).mean(), tensors, retain_graph=True)
    torch.testing.assert_close(gradients, expected)
    through = torch.autograd.grad(flowing, tensors)
    assert torch.allclose(gradients[1], through[1]) == isinstance(options["target"], float)


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("alike", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("batch", [1, 4, 9])
def test_the_calibrated_loss_equals_its_definition(negatives, alike, batch):
    tensors = embeddings(batch, negatives=negatives, alike=alike)
    query, positive, negative = (tensor.detach() for tensor in tensors)
    documents = [*positive, *negative.reshape(-1, negative.shape[-1])]
    margins = []
    for i, q in enumerate(query):
        others = documents[:i] + documents[i + 1 :]
        margins.append([cosine(q, positive[i]) - cosine(q, document) for document in others])

    def costs(scale):
        """Compute the mean cross-entropy of the batch, and the sum with the cost of one more query."""
        partitions = [math.log1p(sum(math.exp(-scale * margin) for margin in row)) for row in margins]
        mean = statistics.fmean(itertools.chain(*margins))
        return statistics.fmean(partitions), sum(partitions) + statistics.fmean(partitions) + scale * mean

    bounds = [math.log(scale) for scale in SCALES]
    best = minimize_scalar(lambda logarithm: costs(math.exp(logarithm))[1], bounds=bounds, method="bounded")
    loss, margin, scale = CalibratedLoss().terms(*tensors)
    assert sorted(margin.flatten().tolist()) == pytest.approx(sorted(itertools.chain(*margins)))
    # the search for the minimum of a flat function is less exact than the root of its derivative
    assert scale.item() == pytest.approx(math.exp(best.x), rel=1e-3)
    assert loss.item() == pytest.approx(costs(scale.item())[0])
    assert not scale.requires_grad
    constant = torch.log1p(torch.exp(-scale.item() * margin).sum(dim=1)).mean()
    gradients = torch.autograd.grad(loss, tensors, retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(constant, tensors))


def test_the_scale_grows_with_the_confidence_of_the_batch():
    margin = torch.tensor([[0.5, 0.4, 0.1], [0.3, -0.1, 0.2]], dtype=torch.float64)
    assert calibrated_scale(margin / 10).item() == pytest.approx(10 * calibrated_scale(margin).item(), rel=1e-4)
    scales = [CalibratedLoss().terms(*embeddings(16, alike=alike)).scale.item() for alike in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert scales == sorted(scales)
    assert scales[-1] > 2 * scales[0]
    # of perfect batches it is finite, and batches that are ranked the wrong way round still train
    assert 1 < calibrated_scale(torch.full((4, 7), 0.5)) < 50
    query, positive, negative = embeddings(alike=-2.0)
    loss, _, scale = CalibratedLoss().terms(query, positive, negative)
    loss.backward()
    assert scale.item() == pytest.approx(1, abs=1e-3)
    assert query.grad.abs().sum() > 0


# --- numbers at the edges ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_autocast_and_16_bits_compute_in_float32_and_zero_vectors_give_no_nan(loss):
    tensors = [tensor.detach() for tensor in embeddings(8, 64)]
    for dtype in (torch.bfloat16, torch.float16):
        short = [tensor.to(dtype) for tensor in tensors]
        with torch.autocast("cpu", dtype=dtype):
            terms = loss.terms(*short)
        assert {term.dtype for term in terms} == {torch.float32}
        # float32 rounds to 1e-7, and the differences of cosines are some ten times smaller than the cosines
        assert terms.loss.item() == pytest.approx(loss(*(tensor.double() for tensor in short)).item(), rel=1e-5)
    zeros = [torch.zeros(shape, requires_grad=True) for shape in [(2, 3), (2, 3), (2, 2, 3)]]
    value = loss(*zeros)
    value.backward()
    assert value.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in zeros)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 3), st.integers(0, 1000), st.sampled_from(VARIANTS))
def test_targets_and_margins_are_bounded_and_only_directions_count(batch, dim, negatives, seed, options):
    tensors = embeddings(batch, dim, negatives, seed)
    loss, margin, target = AdaptiveMarginLoss(**options).terms(*tensors)
    assert -1e-9 <= target.min() <= target.max() <= 1 + 1e-9
    assert margin.abs().max() <= 2 + 1e-9
    assert AdaptiveMarginLoss(**options)(*(7.5 * tensor for tensor in tensors)).item() == pytest.approx(loss.item())


def test_one_triple_and_one_negative_are_special_cases():
    query, positive, negative = embeddings(batch=1)
    values = [AdaptiveMarginLoss("adaptive", in_batch)(query, positive, negative).item() for in_batch in (False, True)]
    assert values[0] == pytest.approx(values[1])
    assert AdaptiveMarginLoss()(query, positive, negative[:, 0]).item() == pytest.approx(values[0])
    assert normalize(query).dtype == torch.float64


# --- input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *[({"target": target}, rf"target.*{target!r}") for target in ("adaptiv", True, None, 0, 2.1, -0.5, math.nan)],
        ({"in_batch": "no"}, "in_batch.*'no'"),
        ({"detach_target": None}, "detach_target.*None"),
        ({"error": "huber"}, "error.*'huber'"),
        ({"target": "distributed", "in_batch": True}, "in_batch=True"),
        ({"target": "adaptive", "pairing": "released"}, "in_batch=True"),
        ({"target": "adaptive", "in_batch": True, "pairing": "own"}, "pairing.*'own'"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        AdaptiveMarginLoss(**options)


@pytest.mark.parametrize("loss", [AdaptiveMarginLoss(), CalibratedLoss()], ids=str)
@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 3), (3, 3), (2, 3)),
        ((2, 3), (2, 4), (2, 3)),
        ((2, 3), (2, 3), (4, 3)),
        ((2, 3), (2, 3), (2, 4)),
        ((3,), (3,), (3,)),
        ((2, 3), (2, 3), (2, 1, 1, 3)),
        ((0, 3), (0, 3), (0, 3)),
        ((2, 3), (2, 3), (2, 0, 3)),
        ((2, 0), (2, 0), (2, 0)),
    ],
)
def test_batches_of_shapes_that_do_not_agree(loss, shapes):
    with pytest.raises(ValueError, match=r"got query \("):
        loss(*map(torch.ones, shapes))


@pytest.mark.parametrize("wrong", [torch.ones(2, 3, dtype=torch.int64), [[1.0, 2.0, 3.0]]])
def test_batches_that_are_no_float_tensors(wrong):
    with pytest.raises(TypeError, match="positive must be a floating point tensor"):
        AdaptiveMarginLoss()(torch.ones(2, 3), wrong, torch.ones(2, 3))
