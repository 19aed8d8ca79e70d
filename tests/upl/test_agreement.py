"""Accuracies that are estimated from agreement, against simulated labelers whose accuracies are known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from upl_ray.upl.agreement import estimated_accuracies

Labels = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float64]


def labels_of(true: Labels, accuracy: float, c: int, rng: np.random.Generator) -> Labels:
    """Right with this probability, and else any other class."""
    other = (true + rng.integers(1, c, len(true))) % c
    return np.where(rng.random(len(true)) < accuracy, true, other)


def agreement_of(labels: list[Labels]) -> Shares:
    return np.array([[np.mean(a == b) for b in labels] for a in labels])


def expected_agreement(accuracies: list[float], c: int) -> Shares:
    """Two labelers agree if both are right, or both wrong and say the same of the other classes."""
    b = len(accuracies)
    agree = np.eye(b)
    for i in range(b):
        for j in range(b):
            if i != j:
                both_wrong = (1 - accuracies[i]) * (1 - accuracies[j])
                agree[i, j] = accuracies[i] * accuracies[j] + both_wrong / (c - 1)
    return agree


@pytest.mark.parametrize(
    ("accuracies", "c"),
    [([0.9, 0.6, 0.7], 10), ([0.55, 0.8, 0.95], 2), ([0.3, 0.99, 0.9, 0.5, 0.2], 7), ([0.02, 0.6, 0.7, 0.8], 1000)],
)
def test_the_model_is_inverted(accuracies: list[float], c: int) -> None:
    assert estimated_accuracies(expected_agreement(accuracies, c), c) == pytest.approx(accuracies, abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_of_independent_labelers_are_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c, accuracies = int(rng.integers(3, 30)), rng.uniform(0.4, 0.95, rng.integers(3, 7))
    true = rng.choice(c, 20_000, p=rng.dirichlet([1.0] * c))  # uneven classes change nothing
    labels = [labels_of(true, a, c, rng) for a in accuracies]
    assert estimated_accuracies(agreement_of(labels), c) == pytest.approx(accuracies.tolist(), abs=0.02)


def test_two_labelers_that_err_together_are_overestimated() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 10, 20_000)
    first, alone = labels_of(true, 0.6, 10, rng), labels_of(true, 0.8, 10, rng)
    second = np.where(rng.random(20_000) < 0.8, first, labels_of(true, 0.6, 10, rng))
    estimated = estimated_accuracies(agreement_of([first, second, alone]), 10)
    assert estimated is not None
    assert min(estimated[:2]) > 0.6 + 0.15
    assert estimated[2] < 0.8 - 0.1  # and who is right alone pays for it


def test_fewer_than_three_labelers_say_nothing() -> None:
    assert estimated_accuracies(np.array([[1.0, 0.7], [0.7, 1.0]]), 10) is None
    assert estimated_accuracies(np.ones((1, 1)), 10) is None
    assert estimated_accuracies(np.ones((0, 0)), 10) is None


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_labelers_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    b, c = int(rng.integers(3, 9)), int(rng.integers(2, 50))
    noise = rng.normal(0, 0.02, (b, b))  # no accuracies explain it exactly
    agree = np.clip(expected_agreement(rng.uniform(0.5, 1, b).tolist(), c) + noise + noise.T, 0, 1)
    order = rng.permutation(b)
    straight, shuffled = (estimated_accuracies(a, c) for a in (agree, agree[np.ix_(order, order)]))
    assert straight is not None
    assert shuffled == pytest.approx([straight[i] for i in order], abs=1e-4)


@pytest.mark.parametrize(("agree", "accuracy"), [(1.0, 1.0), (0.0, 0.1)])
def test_accuracies_stay_between_chance_and_one(agree: float, accuracy: float) -> None:
    estimated = estimated_accuracies(np.full((4, 4), agree), 10)
    assert estimated == pytest.approx([accuracy] * 4, abs=1e-3)
    assert all(0.1 <= a <= 1 for a in estimated)


def test_a_labeler_that_all_others_agree_with_more_than_each_other_is_at_most_right() -> None:
    agree = np.array([[1, 0.95, 0.95], [0.95, 1, 0.5], [0.95, 0.5, 1]])  # 1.35 of the first would explain it
    estimated = estimated_accuracies(agree, 10)
    assert estimated is not None
    assert estimated[0] == pytest.approx(1, abs=1e-6)
    assert max(estimated) <= 1
    assert estimated[1] == pytest.approx(estimated[2], abs=1e-6)
