"""Losses of vectors: the authors' released values, the definitions in plain Python, and finite differences."""

import itertools
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from pyterrier_selfdistill import AdaptiveMarginLoss, SoftmaxLoss
from pyterrier_selfdistill.losses import SCALES, maximum_likelihood_scale, normalize

FOLDER = Path(__file__).parent / "golden"
RELEASED = json.loads((FOLDER / "released_loss.json").read_text())["cases"]
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
SOFTMAX = [SoftmaxLoss(target, scale=20.0) for target in ("listwise", "softmax")]
LOSSES = [*(AdaptiveMarginLoss(**options) for options in VARIANTS), *SOFTMAX]


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
    inputs = [torch.tensor(case[name], dtype=torch.float64, requires_grad=True) for name in TENSORS]
    loss = AdaptiveMarginLoss(case["target"], case["in_batch"], case["error"], pairing=pairing)(*inputs)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], abs=1e-6)
    for name, tensor in zip(TENSORS, inputs, strict=True):
        expected = torch.tensor(case[f"grad_{name}"], dtype=torch.float64)
        torch.testing.assert_close(tensor.grad, expected, atol=1e-6, rtol=1e-7)


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


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("target", ["listwise", "softmax"])
def test_the_softmax_loss_equals_its_definition(target, scale, negatives):
    query, positive, negative = (tensor.detach() for tensor in embeddings(5, negatives=max(negatives, 1)))
    given = [query, positive, negative][: 3 if negatives else 2]
    documents = [*positive, *(negative.reshape(-1, 5) if negatives else [])]
    losses, margins, targets = [], [], []
    for i, q in enumerate(query):
        logits = [scale * cosine(q, document) for document in documents]
        total = sum(map(math.exp, logits))
        similarities = [cosine(positive[i], document) for document in documents]
        labels = [math.exp(scale * similarity) for similarity in similarities]
        if target == "softmax":
            labels = [float(j == i) for j in range(len(documents))]
        pairs = zip(labels, logits, strict=True)
        losses.append(-sum(label / sum(labels) * math.log(math.exp(logit) / total) for label, logit in pairs))
        margins += [(logits[i] - logit) / scale for j, logit in enumerate(logits) if j != i]
        targets += [1 - similarity for j, similarity in enumerate(similarities) if j != i]
    terms = SoftmaxLoss(target, scale).terms(*given)
    assert terms.loss.item() == pytest.approx(statistics.fmean(losses), abs=1e-12)
    assert terms.margin.tolist() == pytest.approx(margins)
    assert target == "softmax" or terms.target.tolist() == pytest.approx(targets)


def test_the_gradients_of_the_softmax_loss_are_those_of_finite_differences_with_constant_labels():
    query, positive, negative = embeddings(3, 4, negatives=2)
    assert torch.autograd.gradcheck(SoftmaxLoss("softmax", 5.0), (query, positive, negative))
    # the labels of listwise are constants, so they are those of the positives before the differences
    listwise = SoftmaxLoss("listwise", 5.0)
    assert torch.autograd.gradcheck(lambda moved: listwise(moved, positive, negative), (query,))
    gradients = torch.autograd.grad(listwise(query, positive, negative), (positive, negative))
    unit = [tensor.detach().reshape(-1, 4) for tensor in (positive, negative)]
    documents = normalize(torch.cat(unit))
    labels = torch.softmax(5.0 * documents[:3] @ documents.T, dim=1)
    moved = torch.cat([positive, negative.reshape(-1, 4)])
    logits = 5.0 * normalize(query) @ normalize(moved).T
    expected = torch.autograd.grad(-(labels * torch.log_softmax(logits, dim=1)).sum(dim=1).mean(), (positive, negative))
    torch.testing.assert_close(gradients, expected)


def test_listwise_does_not_push_copies_of_the_positive_away_and_softmax_leaves_those_of_the_query_out():
    query, positive, negative = (tensor.detach() for tensor in embeddings(4))
    negative[1, 0] = positive[0]
    documents = torch.cat([positive, negative[:, 0]])
    # gradient descent on the documents of the first query alone
    pushed = {}
    for loss in SOFTMAX:
        start = query.clone().requires_grad_()
        loss(start, positive, negative).backward()
        pushed[loss.target] = start.grad
    listwise = torch.softmax(20 * normalize(positive) @ normalize(documents).T, dim=1)
    assert listwise[0, 0].item() == pytest.approx(listwise[0, 5].item())
    assert not torch.allclose(pushed["listwise"], pushed["softmax"])
    # a copy of a positive under the same query has no part in the loss
    is_positive = torch.zeros(4, 8, dtype=torch.bool)
    is_positive[0, 5] = is_positive[0, 0] = True
    without = SoftmaxLoss("softmax", 20.0).terms(query, positive, negative, is_positive).loss
    logits = 20 * normalize(query) @ normalize(documents).T
    logits[0, 5] = -math.inf
    assert without.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, torch.arange(4)).item())


@pytest.mark.parametrize("alike", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("batch", [2, 4, 9])
def test_the_scale_is_of_maximum_likelihood_with_one_query_more(batch, alike):
    query, positive, negative = (tensor.detach() for tensor in embeddings(batch, alike=alike))
    documents = [*positive, *negative[:, 0]]
    margins = []
    for i, q in enumerate(query):
        others = documents[:i] + documents[i + 1 :]
        margins.append(np.array([cosine(q, positive[i]) - cosine(q, document) for document in others]))

    def cost(logarithm):
        """Compute the sum of the cross-entropies, and that of one more query whose relevant document is any other."""
        scale = math.exp(logarithm)
        partitions = [math.log1p(sum(np.exp(-scale * row))) for row in margins]
        return sum(partitions) + statistics.fmean(partitions) + scale * np.concatenate(margins).mean()

    best = minimize_scalar(cost, bounds=[math.log(scale) for scale in SCALES], method="bounded")
    # the search for the minimum of a flat function is less exact than the root of its derivative
    assert maximum_likelihood_scale(margins) == pytest.approx(math.exp(best.x), rel=1e-3)


def test_the_scale_is_inverse_to_the_spread_of_cosines_and_finite():
    margins = [np.array([0.5, 0.4, 0.1]), np.array([0.3, -0.1, 0.2])]
    tenth = [margin / 10 for margin in margins]
    assert maximum_likelihood_scale(tenth) == pytest.approx(10 * maximum_likelihood_scale(margins), rel=1e-4)
    # of perfect batches it is finite, and it is lowest for batches that are ranked the wrong way round
    assert 1 < maximum_likelihood_scale([np.full(7, 0.5)] * 4) < 50
    assert maximum_likelihood_scale([-margin for margin in margins]) == SCALES[0]
    assert maximum_likelihood_scale([np.full(3, 1e-9)] * 4) == SCALES[1]


def test_the_scale_does_not_depend_on_the_size_of_batches():
    generator = np.random.default_rng(0)
    positive = generator.normal(size=(512, 64))
    query, positive = [
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for vectors in (positive + 3 * generator.normal(size=positive.shape), positive)
    ]
    scales = []
    for size in (16, 64):
        margins = []
        for start in range(0, 512, size):
            scores = query[start : start + size] @ positive[start : start + size].T
            margins += [np.delete(row[i] - row, i) for i, row in enumerate(scores)]
        scales.append(maximum_likelihood_scale(margins))
    assert scales[0] == pytest.approx(scales[1], rel=0.1)


# --- numbers at the edges ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_autocast_and_16_bits_compute_in_float32_and_zero_vectors_give_no_nan(loss):
    tensors = [tensor.detach() for tensor in embeddings(8, 64)]
    for dtype in (torch.bfloat16, torch.float16):
        short = [tensor.to(dtype) for tensor in tensors]
        with torch.autocast("cpu", dtype=dtype):
            terms = loss.terms(*short)
        assert {term.dtype for term in terms if term is not None} == {torch.float32}
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


@pytest.mark.parametrize(
    "options", [{"target": "hinge"}, {"scale": 0}, {"scale": -1.0}, {"scale": "20"}, {"scale": math.inf}], ids=str
)
def test_bad_options_of_the_softmax_loss(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}.*{value!r}"):
        SoftmaxLoss(**options)


def test_a_softmax_loss_needs_a_scale():
    with pytest.raises(ValueError, match="scale=20"):
        SoftmaxLoss()(*embeddings())


@pytest.mark.parametrize("loss", [AdaptiveMarginLoss(), *SOFTMAX], ids=str)
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
