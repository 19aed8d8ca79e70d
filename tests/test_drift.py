"""Drift figures against naive loops and simulation."""

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


@pytest.mark.parametrize("images", [30, 300, 3000])
@pytest.mark.parametrize("shares", [[0.25] * 4, [0.97, 0.01, 0.01, 0.01], [0.002] * 500])
def test_the_shift_by_chance_is_what_samples_of_the_same_world_show(images: int, shares: list[float]) -> None:
    rng = np.random.default_rng(1)
    draws = [(rng.multinomial(images, shares) / images, rng.multinomial(5000, shares) / 5000) for _ in range(200)]
    seen = np.mean([drift.class_shift(new, old) for new, old in draws])
    expected = drift.shift_by_chance(np.array(shares), images, 5000)
    assert seen == pytest.approx(expected, rel=0.12, abs=0.01)


def test_samples_of_the_same_world_raise_no_alert_and_of_another_world_do() -> None:
    rng, shares = np.random.default_rng(2), [0.7, 0.1, 0.1, 0.1]
    old = made_up(rng, 10_000, shares)
    same = [drift.alerts(drift.compare(made_up(rng, 150, shares), old, NAMES), Drift()) for _ in range(100)]
    other = [drift.alerts(drift.compare(made_up(rng, 150, shares[::-1]), old, NAMES), Drift()) for _ in range(100)]
    assert not any(same)
    assert all("other classes" in a[0] for a in other)


def test_each_limit_has_its_own_alert_and_few_images_have_none() -> None:
    rng = np.random.default_rng(3)
    old, new = made_up(rng, 1000, [0.25] * 4), made_up(rng, 1000, [0.25] * 4)
    worse = new | {"confidence": 0.3 * 1000, "rejected": 100}
    found = drift.alerts(drift.compare(worse, old, NAMES), Drift())
    assert [a.split(";")[1].split()[0] for a in found] == ["drift.max_confidence_drop", "drift.max_rejected_rise"]
    assert drift.alerts(drift.compare(worse, old, NAMES), Drift(min_images=1001)) == []
    lenient = Drift(max_confidence_drop=0.3, max_rejected_rise=0.2)
    assert drift.alerts(drift.compare(worse, old, NAMES), lenient) == []


def test_the_classes_that_changed_most_are_named() -> None:
    old = {"images": 10, "rejected": 0, "classes": {"0": 10}, "confidence": 0.0, "agreement": 0.0}
    new = {"images": 10, "rejected": 0, "classes": {"0": 4, "2": 6}, "confidence": 0.0, "agreement": 0.0}
    changed = drift.compare(new, old, NAMES)["most_changed"]
    assert changed == [
        {"classname": "ant", "share": 0.4, "share_before": 1.0},
        {"classname": "cat", "share": 0.6, "share_before": 0.0},
    ]
