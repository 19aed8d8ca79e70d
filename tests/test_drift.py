"""Drift figures against naive loops and simulation."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from upl_ray import drift, schema
from upl_ray.predict_config import Drift

NAMES = ("ant", "bee", "cat", "dog")


def predictions(labels: list[int], members: list[list[int]], confidence: list[float]) -> pa.Table:
    ids = [f"{i}.jpg" for i in range(len(labels))]
    names = [NAMES[c] for c in labels]
    return pa.table([ids, labels, names, confidence, members], schema=schema.PREDICTIONS)


def made_up(rng: np.random.Generator, images: int, shares: list[float]) -> drift.Figures:
    counts = rng.multinomial(images, shares)
    classes = {str(c): int(n) for c, n in enumerate(counts) if n}
    return {"images": images, "rejected": 0, "classes": classes, "confidence": 0.5 * images, "agreement": 0.0}


def test_figures_of_a_shard_equal_a_loop_over_its_rows() -> None:
    labels, members, confidence = [1, 3, 1], [[1, 1], [3, 0], [0, 0]], [0.5, 0.25, 1.0]
    found = drift.figures_of(predictions(labels, members, confidence), listed=5)
    agreement = sum(sum(m == label for m in row) / 2 for label, row in zip(labels, members, strict=True))
    assert found == {
        "images": 3,
        "rejected": 2,
        "classes": {"1": 2, "3": 1},
        "confidence": 1.75,
        "agreement": agreement,
    }


def test_a_shard_of_which_nothing_could_be_read_has_figures() -> None:
    empty = drift.figures_of(predictions([], [], []), listed=2)
    assert empty["images"] == 0
    assert drift.means(empty) == {"confidence": 0, "agreement": 0, "rejected": 1}


def test_figures_of_parts_add_up_to_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 40).tolist()
    members = rng.integers(0, 4, (40, 3)).tolist()
    confidence = rng.random(40, np.float32).tolist()
    whole = drift.figures_of(predictions(labels, members, confidence), 41)
    first = drift.figures_of(predictions(labels[:7], members[:7], confidence[:7]), 8)
    second = drift.figures_of(predictions(labels[7:], members[7:], confidence[7:]), 33)
    parts = drift.total([first, second])
    assert parts["classes"] == whole["classes"]
    for name in ("images", "rejected", "confidence", "agreement"):
        assert parts[name] == pytest.approx(whole[name])


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
def test_samples_of_the_same_world_raise_no_alert_and_of_another_world_do(classes: int) -> None:
    rng = np.random.default_rng(2)
    names = tuple(map(str, range(classes)))
    shares = [0.7, *[0.3 / (classes - 1)] * (classes - 1)] if classes == 4 else [1 / classes] * classes
    others = shares[::-1] if classes == 4 else [0.1] * 10 + [0] * (classes - 10)
    old = made_up(rng, 10_000, shares)
    same = [found(drift.compare(made_up(rng, 150, shares), old, names)) for _ in range(20)]
    other = [found(drift.compare(made_up(rng, 150, others), old, names)) for _ in range(20)]
    assert not any(same)
    assert all("other classes" in a[0] for a in other)


def test_too_few_images_for_so_many_classes_are_said_to_be_blind() -> None:
    rng = np.random.default_rng(4)
    shares, names = [0.001] * 1000, tuple(map(str, range(1000)))
    old = made_up(rng, 10_000, shares)
    few, many = (drift.compare(made_up(rng, n, shares), old, names) for n in (1, 3000))
    assert few["class_shift_visible"] > 0.5
    assert "% cannot be told from chance" in str(drift.blind(few, Drift(min_images=1)))
    assert 0 < many["class_shift_visible"] < 0.1
    assert drift.blind(many, Drift()) is None


def found(compared: dict[str, Any], **limits: Any) -> list[str]:
    return drift.alerts(compared, 0, 0, Drift(**limits))


def test_each_limit_has_its_own_alert() -> None:
    rng = np.random.default_rng(3)
    old, new = made_up(rng, 1000, [0.25] * 4), made_up(rng, 1000, [0.25] * 4)
    worse = drift.compare(new | {"confidence": 0.3 * 1000, "rejected": 100}, old, NAMES)
    fields = [a.split(";")[1].split()[0] for a in found(worse)]
    assert fields == ["drift.max_rejected_rise", "drift.max_confidence_drop"]
    assert found(worse, max_confidence_drop=0.3, max_rejected_rise=0.2) == []


def test_the_classes_that_changed_most_are_named() -> None:
    old = {"images": 10, "rejected": 0, "classes": {"0": 10}, "confidence": 0.0, "agreement": 0.0}
    new = {"images": 10, "rejected": 0, "classes": {"0": 4, "2": 6}, "confidence": 0.0, "agreement": 0.0}
    changed = drift.compare(new, old, NAMES)["most_changed"]
    assert changed == [
        {"classname": "ant", "share": 0.4, "share_before": 1.0},
        {"classname": "cat", "share": 0.6, "share_before": 0.0},
    ]
