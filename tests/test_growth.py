"""Sequences of nights, and what a person would expect of each; pure, with made-up figures."""

from __future__ import annotations

from typing import Any

import pytest
from made_up import figures

from upl_ray import drift, growth
from upl_ray.figures import Figures, total
from upl_ray.growth import Growth
from upl_ray.predict_config import Drift

NAMES = ("ant", "bee")


def night(seen: Growth | None, limits: Drift | None = None, **shards: Figures) -> Growth:
    """A night on which the corpus is these shards."""
    grown = growth.grow(seen, shards) if seen else growth.start(shards)
    return growth.compare(grown, limits or Drift(), NAMES, {"time": "tonight"})


def alerts(seen: Growth, limits: Drift | None = None) -> list[str]:
    return drift.alerts(seen["drift"], seen["removed"], seen["listed_before"], limits or Drift())


def fields(seen: Growth, limits: Drift | None = None) -> list[str]:
    """The limits that are exceeded."""
    return [a.rpartition("drift.")[2].split()[0] for a in alerts(seen, limits)]


def compared(seen: Growth, kind: str = "classes") -> tuple[int, int]:
    found: dict[str, Any] = seen["drift"][kind]
    return found["images"], found["images_before"]


def test_the_first_night_is_what_later_ones_are_compared_with() -> None:
    first = night(None, a=figures(300, 100))
    assert (first["new"], first["removed"], first["waiting"], first["drift"]) == (400, 0, {}, {})
    second = night(first, a=figures(300, 100), b=figures(60, 60))
    new, old = figures(60, 60), figures(300, 100)
    assert second["drift"]["classes"] == {"time": "tonight", **drift.compare_classes(new, old, NAMES)}
    assert second["drift"]["unreadable"] == {"time": "tonight", **drift.compare_unreadable(new, old)}


def test_few_new_images_add_up_beside_what_was_there_before_them() -> None:
    seen = night(None, a=figures(300, 100))
    seen = night(seen, a=figures(300, 100), b=figures(0, 60))
    assert (seen["drift"], list(seen["waiting"])) == ({}, ["b"])
    seen = night(seen, a=figures(300, 100), b=figures(0, 60), c=figures(10, 30))
    assert (seen["new"], seen["waiting"], compared(seen)) == (40, {}, (100, 400))
    assert fields(seen) == ["max_class_shift"]
    assert seen["seen"]["images"] == 500


def test_an_alert_stands_until_enough_newer_images_look_otherwise() -> None:
    seen = night(None, a=figures(300))
    seen = night(seen, a=figures(300), b=figures(0, 144))
    assert fields(seen) == ["max_class_shift"]
    seen = night(seen, a=figures(300), b=figures(0, 144), c=figures(1))
    assert (fields(seen), list(seen["waiting"])) == (["max_class_shift"], ["c"])
    seen = night(seen, a=figures(300), b=figures(0, 144), c=figures(1), d=figures(66, 33))
    assert (alerts(seen), compared(seen)) == ([], (100, 444))


@pytest.mark.parametrize("size", [30, 150])
def test_a_folder_whose_content_is_another_one_every_night_is_compared_for_ever(size: int) -> None:
    """Every night's images are gone the next morning; on the tenth night they begin to look otherwise."""
    everything = Drift(max_removed=1)
    seen = night(None, everything, n0=figures(200, 200))
    for i in range(1, 10):
        seen = night(seen, everything, **{f"n{i}": figures(size // 2, size // 2)})
        assert (seen["new"], seen["removed"], alerts(seen, everything)) == (size, 400 if i == 1 else size, [])
    told = []
    for i in range(10, 18):
        seen = night(seen, everything, **{f"n{i}": figures(0, size)})
        told.append(fields(seen, everything) == ["max_class_shift"])
    assert told[-1]
    assert told.index(True) <= 100 // size + 2  # nights that are needed for a hundred such images
    assert sum(f["images"] for f in seen["waiting"].values()) < 100


def test_files_that_were_all_touched_are_new_images_that_look_like_those_before() -> None:
    seen = night(None, a=figures(300, 100))
    seen = night(seen, b=figures(300, 100))
    assert (seen["new"], seen["removed"], compared(seen)) == (400, 400, (400, 400))
    assert fields(seen) == ["max_removed"]
    seen = night(seen, b=figures(300, 100), c=figures(0, 150))  # and from then on all is as it was
    assert (fields(seen), compared(seen)) == (["max_class_shift"], (150, 800))


def test_losses_and_returns_do_not_cancel() -> None:
    a, b, half = figures(100, 100), figures(50, 50), figures(50, 50)
    seen = night(None, a=a, b=b)
    seen = night(seen, a=half, b=b)
    assert (seen["new"], seen["removed"], seen["listed_before"]) == (0, 100, 300)
    seen = night(seen, a=a)  # a hundred are back, a hundred others gone
    assert (seen["new"], seen["removed"], seen["listed_before"]) == (100, 100, 200)
    assert fields(seen) == ["max_removed"]
    seen = night(seen, a=a, b=b)
    assert (seen["new"], seen["removed"]) == (100, 0)


def test_unreadable_images_that_are_gone_are_gone_but_new_are_only_labeled_ones() -> None:
    seen = night(None, a=figures(100, rejected=20))
    seen = night(seen, a=figures(100, rejected=5), b=figures(7, rejected=3))
    assert (seen["new"], seen["removed"], seen["listed_before"]) == (7, 15, 120)


def test_images_join_a_baseline_that_is_too_small_to_judge_by() -> None:
    seen = night(None, a=figures(5))
    seen = night(seen, a=figures(5), b=figures(0, 90))
    assert (seen["drift"], seen["waiting"], seen["seen"]["images"]) == ({}, {}, 95)
    seen = night(seen, a=figures(5), b=figures(0, 90), c=figures(1000))
    assert (seen["drift"], seen["seen"]["images"]) == ({}, 1095)
    seen = night(seen, a=figures(5), b=figures(0, 90), c=figures(1000), d=figures(91, 9))
    assert compared(seen) == (100, 1095)


def test_a_night_of_unreadable_images_is_an_alert_and_says_nothing_about_classes() -> None:
    seen = night(None, a=figures(300))
    seen = night(seen, a=figures(300), b=figures(0, 150))
    assert fields(seen) == ["max_class_shift"]
    shards = {"a": figures(300), "b": figures(0, 150), "c": figures(3, rejected=100)}
    seen = night(seen, **shards)
    assert fields(seen) == ["max_rejected_rise", "max_class_shift"]  # the class shift was not looked at
    assert (compared(seen), compared(seen, "unreadable")) == ((150, 300), (103, 450))
    assert night(seen, **shards)["drift"] == seen["drift"]
    seen = night(seen, **shards, d=figures(66, 34))  # now 103 can be read, a hundred of 203 cannot
    assert fields(seen) == ["max_rejected_rise"]
    assert (compared(seen), compared(seen, "unreadable"), seen["waiting"]) == ((103, 450), (203, 450), {})
    assert alerts(night(seen, **shards, d=figures(66, 34), e=figures(66, 34))) == []


def test_readable_images_among_many_unreadable_ones_add_up() -> None:
    shards = {"a": figures(300)}
    seen = night(None, **shards)
    told = []
    for i in range(3):
        shards[f"n{i}"] = figures(0, 40, rejected=100)
        seen = night(seen, **shards)
        told.append(fields(seen))
    assert told == [["max_rejected_rise"]] * 2 + [["max_rejected_rise", "max_class_shift"]]


def test_another_classifier_judges_the_same_images_anew() -> None:
    """Retrained every second night, with 40 images a night: what waits goes on waiting, and is compared at last."""
    bees, seen, waiting = {"a": 0}, night(None, a=figures(300)), []
    for i in range(5):
        bees[f"n{i}"] = 40 if i == 2 else 0
        retrained = 0.9 if i in (1, 2) else 0.5  # each classifier is as sure of all images
        sizes = {k: 300 if k == "a" else 40 for k in bees}
        shards = {k: figures(sizes[k] - bees[k], bees[k], confidence=retrained) for k in bees}
        seen = night(growth.carry_over(seen, shards) if i in (1, 3) else seen, **shards)
        waiting.append(sorted(seen["waiting"]))
    assert waiting == [["n0"], ["n0", "n1"], [], ["n3"], ["n3", "n4"]]
    assert compared(seen) == (120, 300)
    assert fields(seen) == ["max_class_shift"]  # a third of the new images


def test_figures_of_two_classifiers_are_never_added() -> None:
    seen = night(None, a=figures(200, 200), gone=figures(100, 100))
    seen = night(seen, a=figures(200, 200), b=figures(30, 30))
    anew = {"a": figures(400, confidence=0.9), "b": figures(60, confidence=0.9), "c": figures(50, confidence=0.9)}
    carried = growth.carry_over(seen, anew)
    assert (carried["seen"], carried["waiting"]) == (anew["a"], {"b": anew["b"]})
    grown = night(carried, **anew)
    assert (grown["new"], grown["removed"], grown["listed_before"]) == (50, 0, 460)
    assert compared(grown) == (110, 400)
    assert alerts(grown) == []
    assert grown["seen"] == total(anew.values())


def test_an_alert_outlives_a_change_of_classifier_until_the_next_comparison() -> None:
    shards = {"a": figures(300), "b": figures(0, 150)}
    seen = night(night(None, a=figures(300)), **shards)
    seen = night(growth.carry_over(seen, shards), **shards)
    assert fields(seen) == ["max_class_shift"]
    assert alerts(night(seen, **shards, c=figures(80, 40))) == []


def test_all_that_was_seen_is_gone_as_the_classifier_changes() -> None:
    """Nothing is left that could be compared with: tonight's images are the next nights' baseline."""
    seen = night(night(None, a=figures(300)), b=figures(300))
    seen = night(growth.carry_over(seen, {"c": figures(0, 200)}), c=figures(0, 200))
    assert (compared(seen), seen["seen"]["images"], seen["waiting"]) == ((300, 300), 200, {})
    assert compared(night(seen, d=figures(200))) == (200, 200)


def test_the_watch_is_not_changed_in_place() -> None:
    first = night(None, a=figures(300))
    kept = repr(first)
    night(first, a=figures(300), b=figures(50))
    night(first, a=figures(300), b=figures(0, 150))
    assert repr(first) == kept
