"""Refined labels against the formulas written as plain loops, and the published figures of real features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from benchmarks.refine import Rows, draws, measure, read
from upl_ray.upl import refine as module
from upl_ray.upl.refine import (
    Mixture,
    Statistics,
    anchor_memberships,
    class_shares,
    means_of_anchors,
    memberships,
    refine,
    statistics,
    update,
)

WHURS19 = Path(__file__).parents[3] / "shared/data/whurs19/whurs19.npz"
WIDTHS = (5, 8)
Array = npt.NDArray[np.float64]


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Slices end within the few images of a test."""
    if "whurs19" not in request.fixturenames:
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)


def world(
    seed: int, n: int = 60, c: int = 4, present: int | None = None, distance: float = 1.0
) -> tuple[list[Tensor], Tensor, Array]:
    """Normalised features in a cloud of each class, float16; uncertain probabilities; true classes.

    Classes from `present` on are absent, and improbable for every image. `distance` is that of class means, in
    standard deviations of a cloud.
    """
    rng = np.random.default_rng(seed)
    true = rng.integers(0, present or c, n)
    features = []
    for width in WIDTHS:
        x = 1 + distance * rng.normal(size=(c, width))[true] + rng.normal(size=(n, width))
        features.append(torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).half())
    logits = torch.from_numpy(rng.normal(size=(n, c)) + 1.5 * np.eye(c)[true])
    if present:
        logits[:, present:] = -4 + 0.1 * logits[:, present:]
    return features, logits.softmax(dim=1).float(), true


def naive_anchors(p: Array) -> Array:
    n, c = p.shape
    z = np.zeros((n, c))
    for k in range(c):
        mine = sorted((-p[i, k], i) for i in range(n) if max(range(c), key=lambda j: p[i, j]) == k)
        for _, i in mine[:8]:
            z[i, k] = 1
    return z


def naive_anchor_mean(x: Array, z: Array, k: int) -> Array:
    chosen = [row for row, weight in zip(x, z[:, k], strict=True) if weight]
    return np.mean(chosen or list(x), axis=0)


def naive_mixture(x: Array, z: Array, anchors: list[Array], kappa: float) -> tuple[list[Array], Array]:
    n, c = z.shape
    counts = [sum(z[i, k] for i in range(n)) for k in range(c)]
    means = [(sum(z[i, k] * x[i] for i in range(n)) + kappa * anchors[k]) / (counts[k] + kappa) for k in range(c)]
    spread = sum(z[i, k] * (x[i] - means[k]) ** 2 for i in range(n) for k in range(c))
    return means, np.maximum(spread / sum(counts), 1e-6)


def naive_refine(features: list[Tensor], fused: Tensor, beta: float, kappa: float, sweeps: int) -> tuple[Array, Array]:
    """Probabilities and class shares, straight from the formulas."""
    xs, p = [x.double().numpy() for x in features], fused.double().numpy()
    n, c = p.shape
    z, pi = naive_anchors(p), p.mean(axis=0)
    anchors = [[naive_anchor_mean(x, z, k) for k in range(c)] for x in xs]
    for _ in range(sweeps):
        logits = np.log(p) + np.log(pi)
        for x, of in zip(xs, anchors, strict=True):
            means, variance = naive_mixture(x, z, of, kappa)
            for i in range(n):
                for k in range(c):
                    logits[i, k] -= beta / (2 * len(xs)) * sum((x[i] - means[k]) ** 2 / variance) / x.shape[1]
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        z = e / e.sum(axis=1, keepdims=True)
        pi = (z.sum(axis=0) + 1) / (n + c)
    return z, pi


@pytest.mark.parametrize(("seed", "present"), [(0, None), (1, None), (2, None), (3, 2), (4, 3)])
def test_refine_equals_plain_loops(seed: int, present: int | None) -> None:
    features, p, _ = world(seed, present=present)
    beta, kappa, sweeps = [(5.0, 8.0, 10), (2.0, 3.0, 1), (9.0, 0.5, 3)][seed % 3]
    refined = refine(features, p, beta=beta, kappa=kappa, sweeps=sweeps)
    z, pi = naive_refine(features, p, beta, kappa, sweeps)
    assert np.abs(z - p.numpy()).max() > 0.3
    np.testing.assert_allclose(refined.probabilities, z, rtol=1e-3, atol=1e-12)  # the small ones too
    np.testing.assert_allclose(refined.class_shares, pi, atol=1e-6)


def test_constants_are_the_documented_ones() -> None:
    features, p, _ = world(5)
    z, _ = naive_refine(features, p, beta=5, kappa=8, sweeps=10)
    np.testing.assert_allclose(refine(features, p).probabilities, z, rtol=1e-3, atol=1e-12)


def random_memberships(seed: int, n: int, c: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([0.3] * c, n)).float()


def assert_same(a: Statistics, b: Statistics) -> None:
    torch.testing.assert_close(a.counts, b.counts, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.sums, b.sums, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.squares, b.squares, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_statistics_add_over_any_split(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, p, _ = world(seed, n=50)
    z = 0.7 * random_memberships(seed, *p.shape)  # rows need not sum to 1
    cuts = sorted(rng.integers(0, 51, rng.integers(1, 6)).tolist())  # equal ones leave empty parts
    order = rng.permutation(50)
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, 50], strict=True)]
    first, *others = [statistics([x[rows] for x in features], z[rows]) for rows in parts]
    assert_same(sum(others, start=first), statistics(features, z))


@pytest.mark.parametrize("seed", range(3))
def test_statistics_equal_plain_sums_in_float64(seed: int) -> None:
    features, p, _ = world(seed, n=20)
    z = 0.7 * random_memberships(seed, *p.shape)
    xs = [x.double() for x in features]
    naive = Statistics(
        sum(row.double() for row in z),
        tuple(sum(w.double()[:, None] * row for w, row in zip(z, x, strict=True)) for x in xs),
        tuple(sum(w.double().sum() * row**2 for w, row in zip(z, x, strict=True)) for x in xs),
    )
    assert_same(statistics(features, z), naive)


def test_variances_have_a_floor() -> None:
    x = torch.tensor([[0.6, 0.8], [0.6, -0.8], [0.6, 0.0]])
    z = random_memberships(0, 3, 2)
    mixture = update(statistics([x], z), [torch.full((2, 2), 0.6)], torch.tensor([0.5, 0.5]), kappa=8.0)
    assert mixture.variances[0][0] == 1e-6
    assert mixture.variances[0][1] > 0.1


def test_the_order_of_images_does_not_matter() -> None:
    features, p, _ = world(6)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(p)))
    assert len(p.max(dim=1).values.unique()) == len(p)
    straight, shuffled = refine(features, p), refine([x[order] for x in features], p[order])
    torch.testing.assert_close(shuffled.probabilities, straight.probabilities[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(shuffled.class_shares, straight.class_shares, rtol=0, atol=1e-6)


def test_anchors_are_the_eight_most_confident_and_equals_the_first() -> None:
    confidence = torch.tensor([0.7] * 6 + [0.9] * 6 + [0.6] * 3)
    p = torch.stack([confidence, 1 - confidence, torch.zeros(15)], dim=1)
    p[12:] = p[12:, [1, 0, 2]]
    z = anchor_memberships(p)
    assert torch.nonzero(z[:, 0]).flatten().tolist() == [0, 1, *range(6, 12)]
    assert torch.nonzero(z[:, 1]).flatten().tolist() == [12, 13, 14]
    assert z[:, 2].sum() == 0
    assert z.sum() == 11


def test_a_class_without_anchors_takes_the_mean_of_all_images() -> None:
    features, p, _ = world(7, present=2)
    p[4] = torch.tensor([0.1, 0.1, 0.7, 0.1])
    anchors = anchor_memberships(p)
    assert anchors.sum(dim=0).tolist() == [8, 8, 1, 0]
    means = means_of_anchors(statistics(features, anchors), statistics(features, torch.ones(len(p), 1)))
    for mean, x in zip(means, features, strict=True):
        x = x.double()
        np.testing.assert_allclose(mean[0], x[anchors[:, 0] == 1].mean(dim=0), atol=1e-6)
        np.testing.assert_allclose(mean[2], x[4], atol=1e-6)
        np.testing.assert_allclose(mean[3], x.mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_shares_sum_to_one_and_an_absent_class_gets_next_to_none(seed: int) -> None:
    features, p, true = world(seed, n=200, present=3, distance=3)
    refined = refine(features, p)
    assert float(refined.class_shares.sum()) == pytest.approx(1, abs=1e-6)
    assert 0 < refined.class_shares[3] < 1.1 / (200 + 4)  # the one image that each class has for nothing
    np.testing.assert_allclose(refined.class_shares, np.bincount(true, minlength=4) / 200, atol=0.03)


def test_images_of_one_class_pull_their_labels_right() -> None:
    features, p, true = world(8, n=400, distance=3)
    before, after = (np.mean(of.argmax(dim=1).numpy() == true) for of in (p, refine(features, p).probabilities))
    assert before < 0.85
    assert after > 0.97


def test_the_mixture_gives_the_same_probabilities_and_each_image_its_own() -> None:
    features, p, _ = world(9)
    refined = refine(features, p, beta=3.0)
    assert torch.equal(memberships(features, p, refined.mixture, beta=3.0), refined.probabilities)
    some = torch.tensor([41, 3, 17])
    alone = memberships([x[some] for x in features], p[some], refined.mixture, beta=3.0)
    torch.testing.assert_close(alone, refined.probabilities[some], rtol=0, atol=1e-6)


def test_parts_of_a_corpus_are_refined_as_the_whole() -> None:
    features, p, _ = world(10)
    parts = [slice(0, 13), slice(13, 14), slice(14, 60)]
    of_parts = [[x[rows] for x in features] for rows in parts]
    anchors = anchor_memberships(p)
    z = [anchors[rows] for rows in parts]
    everything = sum_of([statistics(of, torch.ones(len(of[0]), 1)) for of in of_parts])
    total = sum_of([statistics(of, some) for of, some in zip(of_parts, z, strict=True)])
    means, shares = means_of_anchors(total, everything), p.double().mean(dim=0)
    for _ in range(10):
        mixture = update(total, means, shares, 8.0)
        z = [memberships(of, p[rows], mixture, 5.0) for of, rows in zip(of_parts, parts, strict=True)]
        total = sum_of([statistics(of, some) for of, some in zip(of_parts, z, strict=True)])
        shares = class_shares(total)
    torch.testing.assert_close(torch.cat(z), refine(features, p).probabilities, rtol=0, atol=1e-5)


def sum_of(parts: list[Statistics]) -> Statistics:
    return sum(parts[1:], start=parts[0])


def test_half_precision_is_only_a_way_to_store_features() -> None:
    features, p, _ = world(11)
    half, full = (refine(of, p).probabilities for of in (features, [x.float() for x in features]))
    torch.testing.assert_close(half, full, rtol=0, atol=1e-6)


def test_features_can_overrule_a_probability_that_was_rounded_to_zero() -> None:
    means, variances = torch.eye(2, dtype=torch.float64), torch.full((2,), 0.01, dtype=torch.float64)
    mixture = Mixture((means,), (variances,), torch.tensor([0.5, 0.5], dtype=torch.float64))
    z = memberships([torch.eye(2)], torch.tensor([[1.0, 0.0], [1.0, 0.0]]), mixture, beta=5.0)
    assert z.tolist() == [[1, 0], [0, 1]]  # 5 / 4 * 2 / 0.01 = 250 against -log 1e-30 = 69


# Real features.

Backbones = dict[str, tuple[Tensor, Tensor]]
THREE = ("RN50", "ViT-B-32", "ViT-L-14")
CORPORA: dict[str, dict[str, float]] = {
    "all": {},
    "imbalance 10": {"imbalance": 10},
    "imbalance 50": {"imbalance": 50},
    "10 of 19": {"present": 10},
    "5 of 19": {"present": 5},
}


@pytest.fixture(scope="module")
def whurs19() -> tuple[Rows, Backbones]:
    if not WHURS19.exists():
        pytest.skip(f"no features: {WHURS19} is absent")
    return read(str(WHURS19))


@pytest.mark.parametrize(
    ("names", "corpus", "fused", "refined", "worst"),
    [
        (THREE, "all", 85.9, 94.4, 8.5),
        (THREE, "imbalance 10", 85.1, 94.6, 7.7),
        (THREE, "imbalance 50", 84.3, 93.9, 7.5),
        (THREE, "10 of 19", 85.0, 95.0, 7.4),
        (THREE, "5 of 19", 82.0, 91.5, 3.8),
        (("RN50",), "all", 69.5, 75.8, 6.3),
        (("RN50",), "imbalance 50", 72.1, 79.8, -0.8),
        (("RN50",), "5 of 19", 68.3, 74.2, None),
    ],
)
def test_figures_of_real_features_are_the_documented_ones(
    whurs19: tuple[Rows, Backbones],
    names: tuple[str, ...],
    corpus: str,
    fused: float,
    refined: float,
    worst: float | None,
) -> None:
    labels, backbones = whurs19
    rows = draws(labels, **CORPORA[corpus])  # type: ignore[arg-type]
    figures = measure(labels, [backbones[name] for name in names], rows, beta=5.0)
    assert figures["fused"] == pytest.approx(fused, abs=0.2)
    assert figures["refined"] == pytest.approx(refined, abs=0.2)
    if worst is not None:
        assert figures["worst"] == pytest.approx(worst, abs=0.2)
