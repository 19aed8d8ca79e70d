"""Drift figures against naive loops and simulation."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from made_up import figures

from upl_ray import drift, schema
from upl_ray.figures import Figures, confidence_deviation, figures_of, means, total
from upl_ray.predict_config import Drift

NAMES = ("ant", "bee", "cat", "dog")


def predictions(labels: list[int], members: list[list[int]], confidence: list[float]) -> pa.Table:
    ids = [f"{i}.jpg" for i in range(len(labels))]
    names = [NAMES[c] for c in labels]
    return pa.table([ids, labels, names, confidence, members], schema=schema.PREDICTIONS)


def made_up(rng: np.random.Generator, images: int, shares: list[float]) -> Figures:
    return figures(*(int(n) for n in rng.multinomial(images, shares)), spread=0.0)


def test_figures_of_a_shard_equal_a_loop_over_its_rows() -> None:
    labels, members, confidence = [1, 3, 1], [[1, 1], [3, 0], [0, 0]], [0.5, 0.25, 1.0]
    found = figures_of(predictions(labels, members, confidence), listed=5)
    agreement = sum(sum(m == label for m in row) / 2 for label, row in zip(labels, members, strict=True))
    assert found == {
        "images": 3,
        "rejected": 2,
        "classes": {"1": 2, "3": 1},
        "confidence": 1.75,
        "confidence_squares": 0.5**2 + 0.25**2 + 1,
        "agreement": agreement,
    }


def test_a_shard_of_which_nothing_could_be_read_has_figures() -> None:
    empty = figures_of(predictions([], [], []), listed=2)
    assert empty["images"] == 0
    assert means(empty) == {"confidence": 0, "agreement": 0, "rejected": 1}


def test_figures_of_parts_add_up_to_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 40).tolist()
    members = rng.integers(0, 4, (40, 3)).tolist()
    confidence = rng.random(40, np.float32).tolist()
    whole = figures_of(predictions(labels, members, confidence), 41)
    first = figures_of(predictions(labels[:7], members[:7], confidence[:7]), 8)
    second = figures_of(predictions(labels[7:], members[7:], confidence[7:]), 33)
    parts = total([first, second])
    assert parts["classes"] == whole["classes"]
    for name in ("images", "rejected", "confidence", "confidence_squares", "agreement"):
        assert parts[name] == pytest.approx(whole[name])
    assert confidence_deviation(parts) == pytest.approx(np.std(confidence, ddof=1))


def test_the_class_shift_is_the_share_that_must_move() -> None:
    assert drift.class_shift(np.array([0.5, 0.5, 0, 0]), np.array([0.5, 0.25, 0.25, 0])) == 0.25
    assert drift.class_shift(np.array([1.0, 0]), np.array([0, 1.0])) == 1


@pytest.mark.parametrize("n_new", [1, 3, 20])
def test_the_shifts_by_chance_are_those_of_all_ways_to_choose_the_new_images(n_new: int) -> None:
    """Two classes, 30 ants and 10 bees: `ants` of the new ones are ants with hypergeometric probability."""
    ways = {a: math.comb(30, a) * math.comb(10, n_new - a) / math.comb(40, n_new) for a in range(n_new + 1)}
    expected = sum(chance * abs(a / n_new - (30 - a) / (40 - n_new)) for a, chance in ways.items())
    drawn = drift.shifts_by_chance(np.array([30, 10]), n_new, draws=20_000)
    assert drawn.mean() == pytest.approx(expected, abs=0.005)
    assert (np.diff(drawn) >= 0).all()


def test_more_images_than_numpy_draws_from_are_compared() -> None:
    assert drift.shifts_by_chance(np.array([3 * 10**9, 10**9]), 1000).max() < 0.1


@pytest.mark.parametrize("classes", [4, 1000])
def test_samples_of_another_world_raise_an_alert(classes: int) -> None:
    rng = np.random.default_rng(2)
    names = tuple(map(str, range(classes)))
    shares = [0.7, *[0.3 / (classes - 1)] * (classes - 1)] if classes == 4 else [1 / classes] * classes
    others = shares[::-1] if classes == 4 else [0.1] * 10 + [0] * (classes - 10)
    old = made_up(rng, 10_000, shares)
    other = [told(classes=drift.compare_classes(made_up(rng, 150, others), old, names)) for _ in range(20)]
    assert all("other classes" in a[0] for a in other)


NIGHTS = 3000
Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]
SHAPES: dict[str, Draw] = {  # of the confidence
    "usual": lambda rng, n: rng.beta(8, 2, n),
    "sure": lambda rng, n: rng.beta(1, 0.2, n),
    "undecided": lambda rng, n: rng.beta(0.4, 0.4, n),
    "rarely lost": lambda rng, n: np.where(rng.random(n) < 0.05, 0.1, 0.98),
    "rarely sure": lambda rng, n: rng.beta(0.3, 2, n),
}


def seldom(false: int, comparisons: int) -> bool:
    """True if not more than 1 in 500 are false alerts; three deviations of their number are left to the dice."""
    return false <= comparisons / 500 + 3 * math.sqrt(comparisons / 500)


def sampled(values: npt.NDArray[np.float64]) -> Figures:
    """Figures of images with these confidences."""
    sums = {"confidence": float(values.sum()), "confidence_squares": float((values**2).sum())}
    return figures(len(values)) | sums


@pytest.mark.parametrize("before", [100, 300, 10_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_confidence_is_seldom_an_alert(shape: str, before: int) -> None:
    rng, draw, false = np.random.default_rng(5), SHAPES[shape], 0
    old = sampled(draw(rng, before))
    for _ in range(NIGHTS):
        if before < 10_000:  # so many images do not depend on the dice
            old = sampled(draw(rng, before))
        new = sampled(draw(rng, 100))
        drop = means(old)["confidence"] - means(new)["confidence"]
        false += drop > Drift().max_confidence_drop and drift.confidence_drop_p(new, old) <= drift.CHANCE
    assert seldom(false, NIGHTS)


@pytest.mark.parametrize("before", [100, 10_000])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.2])
def test_the_same_share_of_unreadable_images_is_seldom_an_alert(share: float, before: int) -> None:
    rng, false = np.random.default_rng(6), 0
    for _ in range(NIGHTS):
        new, old = (figures(n - r, rejected=r) for n in (100, before) for r in [int(rng.binomial(n, share))])
        false += bool(told(unreadable=drift.compare_unreadable(new, old)))
    assert seldom(false, NIGHTS)


@pytest.mark.parametrize("before", [100, 10_000])
def test_the_same_classes_are_seldom_an_alert(before: int) -> None:
    rng, false, nights = np.random.default_rng(7), 0, 200
    for _ in range(nights):
        new, old = (made_up(rng, n, [0.6, 0.3, 0.1]) for n in (100, before))
        false += bool(told(classes=drift.compare_classes(new, old, NAMES)))
    assert seldom(false, nights)


def test_a_real_change_of_a_hundred_images_is_found() -> None:
    """Of a thousand nights with such a change, at least 950 say so."""
    rng, usual, seen = np.random.default_rng(8), SHAPES["usual"], {"confidence": 0, "unreadable": 0}
    old = sampled(usual(rng, 10_000)) | {"rejected": 20}
    for _ in range(1000):
        lower = sampled(usual(rng, 100) - 0.12)
        seen["confidence"] += drift.confidence_drop_p(lower, old) <= drift.CHANCE
        rejected = int(rng.binomial(100, 0.1))
        rise = drift.compare_unreadable(figures(100 - rejected, rejected=rejected), old)
        seen["unreadable"] += bool(told(unreadable=rise))
    assert min(seen.values()) >= 950, seen


def test_the_chance_of_unreadable_images_is_that_of_all_ways_to_choose_the_new_ones() -> None:
    ways = sum(math.comb(6, r) * math.comb(94, 10 - r) for r in range(3, 7)) / math.comb(100, 10)
    found = drift.compare_unreadable(figures(7, rejected=3), figures(87, rejected=3))
    assert found["rejected_rise_p"] == pytest.approx(ways)
    assert found["rejected_rise"] == pytest.approx(3 / 10 - 3 / 90)


def test_the_chance_of_a_lower_confidence_is_that_of_shuffled_images() -> None:
    rng = np.random.default_rng(9)
    new, old = rng.beta(8, 2, 60) - 0.03, rng.beta(8, 2, 200)
    both, drop = np.concatenate([new, old]), old.mean() - new.mean()
    shuffled = [rng.permutation(both) for _ in range(20_000)]
    by_chance = np.mean([s[60:].mean() - s[:60].mean() >= drop for s in shuffled])
    assert drift.confidence_drop_p(sampled(new), sampled(old)) == pytest.approx(by_chance, abs=0.02)


def test_of_a_single_image_or_equal_ones_a_fall_is_judged_without_a_deviation() -> None:
    old = figures(100, spread=0.0)
    assert drift.confidence_drop_p(figures(1, confidence=0.1), old) == 1
    assert drift.confidence_drop_p(figures(50, confidence=0.25, spread=0.0), old) == 0
    assert drift.confidence_drop_p(figures(50, spread=0.0), old) == 1


def test_too_few_images_for_so_many_classes_are_said_to_be_blind() -> None:
    rng = np.random.default_rng(4)
    shares, names = [0.001] * 1000, tuple(map(str, range(1000)))
    old = made_up(rng, 10_000, shares)
    few, many = (drift.compare_classes(made_up(rng, n, shares), old, names) for n in (1, 3000))
    assert few["class_shift_visible"] > 0.5
    assert "% cannot be told from chance" in str(drift.blind({"classes": few}, Drift(min_images=1)))
    assert 0 < many["class_shift_visible"] < 0.1
    assert drift.blind({"classes": many}, Drift()) is None
    assert drift.blind({}, Drift()) is None


def told(limits: Drift | None = None, **compared: dict[str, Any]) -> list[str]:
    return drift.alerts(compared, 0, 0, limits or Drift())


def test_each_limit_has_its_own_alert() -> None:
    old = figures(500, 500)
    worse = {
        "unreadable": drift.compare_unreadable(figures(450, 450, rejected=100), old),
        "classes": drift.compare_classes(figures(900, 100, confidence=0.3), old, NAMES),
    }
    fields = [a.split(";")[1].split()[0] for a in told(**worse)]
    assert fields == ["drift.max_rejected_rise", "drift.max_class_shift", "drift.max_confidence_drop"]
    assert told(Drift(max_confidence_drop=0.3, max_rejected_rise=0.2, max_class_shift=0.5), **worse) == []


def test_the_classes_that_changed_most_are_named() -> None:
    changed = drift.compare_classes(figures(4, 0, 6), figures(10), NAMES)["most_changed"]
    assert changed == [
        {"classname": "ant", "share": 0.4, "share_before": 1.0},
        {"classname": "cat", "share": 0.6, "share_before": 0.0},
    ]
