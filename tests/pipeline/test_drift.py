"""Comparisons of a night against scipy on raw values, enumeration, and simulated rates of false alarms."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from made_up import tally
from scipy import stats

from upl_ray.config.settings import Drift
from upl_ray.pipeline import drift
from upl_ray.upl.tally import Tally

NAMES = ("ant", "bee", "cat", "dog")


def drawn(rng: np.random.Generator, images: int, shares: list[float]) -> Tally:
    return tally(*(int(n) for n in rng.multinomial(images, shares)))


def sampled(values: npt.NDArray[np.float64]) -> Tally:
    """Images with these confidences."""
    return Tally(len(values), 0, {"0": len(values)}, float(values.sum()), float((values**2).sum()))


def alerts(limits: Drift | None = None, removed: int = 0, before: int = 0, **tests: dict[str, Any]) -> list[str]:
    return drift.alerts({"new": 100, "removed": removed, "before": before, **tests}, limits or Drift())


def test_the_class_shift_is_the_share_that_must_move() -> None:
    assert drift.class_shift(np.array([0.5, 0.5, 0, 0]), np.array([0.5, 0.25, 0.25, 0])) == 0.25
    assert drift.class_shift(np.array([1.0, 0]), np.array([0, 1.0])) == 1


@pytest.mark.parametrize("n_new", [1, 3, 20])
def test_the_shifts_by_chance_are_those_of_all_ways_to_choose_the_new_images(n_new: int) -> None:
    """Two classes, 30 ants and 10 bees: `a` of the new ones are ants with hypergeometric probability."""
    ways = {a: math.comb(30, a) * math.comb(10, n_new - a) / math.comb(40, n_new) for a in range(n_new + 1)}
    expected = sum(chance * abs(a / n_new - (30 - a) / (40 - n_new)) for a, chance in ways.items())
    assert drift.shifts_by_chance(np.array([30, 10]), n_new, draws=20_000).mean() == pytest.approx(expected, abs=0.005)


def test_of_two_classes_the_probability_is_that_of_fishers_test() -> None:
    found = drift.compare_classes(tally(14, 6), tally(170, 30), NAMES[:2])
    assert found["shift"] == pytest.approx(0.15)
    assert found["p"] == pytest.approx(stats.fisher_exact([[14, 6], [170, 30]]).pvalue, abs=0.03)


def test_the_classes_that_changed_most_are_named() -> None:
    assert drift.compare_classes(tally(4, 0, 6), tally(10), NAMES)["most_changed"] == [
        {"classname": "ant", "share": 0.4, "share_before": 1.0},
        {"classname": "cat", "share": 0.6, "share_before": 0.0},
    ]


def test_more_images_than_numpy_draws_from_are_compared() -> None:
    assert drift.shifts_by_chance(np.array([3 * 10**9, 10**9]), 1000, draws=100).max() < 0.1


def test_the_unreadable_share_is_tested_as_scipys_fisher_test_does() -> None:
    found = drift.compare_unreadable(tally(7, rejected=3), tally(87, rejected=3))
    assert found["p"] == pytest.approx(stats.fisher_exact([[3, 7], [3, 87]], alternative="greater").pvalue)
    assert (found["share"], found["share_before"]) == (3 / 10, 3 / 90)


def test_the_confidence_is_tested_as_scipys_t_tests_do_on_raw_values() -> None:
    rng = np.random.default_rng(9)
    new, before = rng.beta(8, 2, 60) - 0.03, rng.beta(8, 2, 200)
    p = [stats.ttest_ind(new, before, equal_var=equal, alternative="less").pvalue for equal in (True, False)]
    assert drift.compare_confidence(sampled(new), sampled(before))["p"] == pytest.approx(max(p))


@pytest.mark.parametrize(
    ("new", "p"),
    [(tally(1, confidence=0.1), 1), (tally(50, confidence=0.25, spread=0.0), 0), (tally(50, spread=0.0), 1)],
)
def test_a_single_image_and_equal_ones_have_no_deviation(new: Tally, p: int) -> None:
    assert drift.compare_confidence(new, tally(100, spread=0.0))["p"] == p


NIGHTS = 1500
Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]
SHAPES: dict[str, Draw] = {  # of the confidence
    "usual": lambda rng, n: rng.beta(8, 2, n),
    "undecided": lambda rng, n: rng.beta(0.4, 0.4, n),
    "rarely lost": lambda rng, n: np.where(rng.random(n) < 0.05, 0.1, 0.98),
    "rarely sure": lambda rng, n: rng.beta(0.3, 2, n),
}


def seldom(false: int, nights: int) -> bool:
    """True if not more than 1 in 500 are false alarms; three deviations of their number are left to the dice."""
    return false <= nights / 500 + 3 * math.sqrt(nights / 500)


@pytest.mark.parametrize("before", [100, 300])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_confidence_is_seldom_an_alert(shape: str, before: int) -> None:
    rng, draw = np.random.default_rng(5), SHAPES[shape]
    nights = (drift.compare_confidence(sampled(draw(rng, 100)), sampled(draw(rng, before))) for _ in range(NIGHTS))
    assert seldom(sum(bool(alerts(confidence=found)) for found in nights), NIGHTS)


@pytest.mark.parametrize("share", [0.001, 0.02, 0.2])
def test_the_same_share_of_unreadable_images_is_seldom_an_alert(share: float) -> None:
    rng, false = np.random.default_rng(6), 0
    for _ in range(NIGHTS):
        new, before = (tally(n - r, rejected=r) for n in (100, 1000) for r in [int(rng.binomial(n, share))])
        false += bool(alerts(unreadable=drift.compare_unreadable(new, before)))
    assert seldom(false, NIGHTS)


@pytest.mark.parametrize("classes", [3, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_same_classes_are_seldom_an_alert_and_others_always_are(classes: int) -> None:
    rng, names, nights = np.random.default_rng(7), tuple(map(str, range(classes))), 40
    shares = [0.6, 0.3, 0.1] if classes == 3 else [1 / classes] * classes
    others = shares[::-1] if classes == 3 else [0.1] * 10 + [0] * (classes - 10)
    before = drawn(rng, 10_000, shares)
    same, changed = (
        sum(bool(alerts(classes=drift.compare_classes(drawn(rng, 150, of), before, names))) for _ in range(nights))
        for of in (shares, others)
    )
    assert seldom(same, nights)
    assert changed == nights


def test_a_real_change_of_a_hundred_images_is_found() -> None:
    """Of a thousand nights with such a change, at least 950 raise the alert."""
    rng, usual, found = np.random.default_rng(8), SHAPES["usual"], {"confidence": 0, "unreadable": 0}
    before = sampled(usual(rng, 10_000))
    before.rejected = 20
    for _ in range(1000):
        found["confidence"] += drift.compare_confidence(sampled(usual(rng, 100) - 0.12), before)["p"] <= drift.CHANCE
        rejected = int(rng.binomial(100, 0.1))
        rise = drift.compare_unreadable(tally(100 - rejected, rejected=rejected), before)
        found["unreadable"] += bool(alerts(unreadable=rise))
    assert min(found.values()) >= 950, found


def test_each_limit_has_an_alert_of_its_name() -> None:
    found = drift.compare(
        tally(900, 100, confidence=0.3, rejected=200), tally(500, 500), removed=150, limits=Drift(), classnames=NAMES
    )
    fields = [a.split("; drift.")[1].split()[0] for a in drift.alerts(found, Drift())]
    assert fields == ["max_removed", "max_rejected_rise", "max_class_shift", "max_confidence_drop"]
    loose = Drift(max_removed=0.2, max_confidence_drop=0.3, max_rejected_rise=0.2, max_class_shift=0.5)
    assert drift.alerts(found, loose) == []
    assert (found["new"], found["before"], found["removed"]) == (1200, 1000, 150)


@pytest.mark.parametrize(
    ("new", "before", "tests"),
    [
        (tally(99), tally(500), set()),
        (tally(100), tally(99), set()),
        (tally(3, rejected=97), tally(500), {"unreadable"}),
        (tally(100), tally(100), {"unreadable", "confidence", "classes"}),
    ],
)
def test_too_few_images_are_not_tested_and_the_summary_says_so(new: Tally, before: Tally, tests: set[str]) -> None:
    found = drift.compare(new, before, removed=0, limits=Drift(), classnames=NAMES)
    assert found.keys() & {"unreadable", "confidence", "classes"} == tests
    assert (
        "drift.min_images is 100. From the next night on the new ones count as before" in found.get("note", "")
    ) == ("classes" not in tests)


def test_a_night_that_only_loses_images_has_no_test_and_no_note() -> None:
    found = drift.compare(tally(), tally(500), removed=60, limits=Drift(), classnames=NAMES)
    assert found == {"new": 0, "before": 500, "removed": 60}
    assert len(drift.alerts(found, Drift())) == 1
