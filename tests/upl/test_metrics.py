"""Scores against scikit-learn, published values and naive loops."""

import math

import numpy as np
import pytest

from upl_ray.upl import metrics


def labels(seed: int, n: int = 200, c: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes of which a third is right; a fifth of the images has no label."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, c, n)
    predicted = np.where(rng.random(n) < 1 / 3, true, rng.integers(0, c - 1, n))  # class c - 1 is rarely predicted
    return predicted, np.where(rng.random(n) < 0.2, metrics.UNLABELED, true)


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_equals_scikit_learns(seed: int) -> None:
    from sklearn.metrics import accuracy_score  # a second to import, which every collection of the tests would take

    predicted, true = labels(seed)
    known = true != metrics.UNLABELED
    assert metrics.accuracy(predicted, true) == pytest.approx(accuracy_score(true[known], predicted[known]))


def test_nothing_labeled_is_not_a_number() -> None:
    predicted, true = np.array([0, 1]), np.array([metrics.UNLABELED] * 2)
    assert math.isnan(metrics.accuracy(predicted, true))
    assert math.isnan(metrics.accuracy(predicted[:0], true[:0]))


def test_a_label_is_a_class_name_or_a_class_number() -> None:
    names = ("sea horse", "cat", "747", "dog")
    labels = ["cat", "sea_horse", "bird", None, "", "3", "747", "0", "4", "-1", "Cat"]
    assert metrics.true_labels(labels, names).tolist() == [1, 0, -1, -1, -1, 3, 2, 0, -1, -1, -1]
    assert metrics.true_labels(["0", "1", "2.0", "3"], ("1", "2", "3")).tolist() == [-1, 0, 1, 2]
    assert metrics.true_labels(["0.0", "2.0", "9.0", "0.5"], names).tolist() == [0, 2, -1, -1]
    numbered = ["001.sea_horse", "n02085620-dog", "2_7", "2.5", "3 x"]
    assert metrics.true_labels(numbered, names).tolist() == [0, 3, -1, -1, -1]


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_intervals_are_the_published_ones(right: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Two-sided confidence intervals for the single proportion, table I, method 3."""
    assert [round(x, 4) for x in metrics.wilson(right, n)] == [low, high]
    assert [round(1 - x, 4) for x in metrics.wilson(n - right, n)] == [high, low]


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        metrics.wilson(0, 0)
    with pytest.raises(ValueError, match="at least one image"):
        metrics.paired_difference(0, 0, 0)


def test_paired_intervals_hold_the_true_difference_in_95_of_100_draws() -> None:
    rng = np.random.default_rng(0)
    up, down, n = 0.12, 0.07, 300
    drawn = rng.multinomial(n, [up, down, 1 - up - down], 4000)
    intervals = [metrics.paired_difference(int(g), int(lost), n) for g, lost, _ in drawn]
    assert np.mean([low <= up - down <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.015)


def test_swapping_the_sides_turns_the_difference_around() -> None:
    low, high = metrics.paired_difference(30, 11, 200)
    assert metrics.paired_difference(11, 30, 200) == pytest.approx((-high, -low))


def naive_ece(confidence: list[float], right: list[bool], bins: int) -> float:
    total = 0.0
    for b in range(bins):
        inside = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins or (b == 0 and c == 0)]
        if inside:
            gap = abs(sum(right[i] for i in inside) - sum(confidence[i] for i in inside)) / len(inside)
            total += gap * len(inside) / len(confidence)
    return total


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_equals_a_naive_loop_and_adds_over_shards(seed: int) -> None:
    rng = np.random.default_rng(seed)
    confidence = np.append(rng.random(500), [0.0, 1.0])
    right = rng.random(502) < confidence
    whole = metrics.reliability(confidence, right)
    assert metrics.calibration_error(whole) == pytest.approx(
        naive_ece(confidence.tolist(), right.tolist(), metrics.BINS)
    )
    parts = [metrics.reliability(confidence[s], right[s]) for s in (slice(0, 100), slice(100, 502))]
    np.testing.assert_allclose(sum(parts), whole)
    assert whole[:, 0].sum() == 502
