"""How the manifest of predictions grows with its corpus; no Ray, real files."""

from pathlib import Path
from typing import Any

import pytest

from upl_ray import drift
from upl_ray.artifacts import Artifact, Store
from upl_ray.corpus import Corpus, Shard
from upl_ray.predict_config import Drift
from upl_ray.predictions import publish

NAMES = ("ant", "bee")


@pytest.fixture
def places(tmp_path: Path) -> tuple[Artifact, Artifact]:
    """Where predictions go, and a classifier of two classes."""
    store = Store(str(tmp_path))
    classifier = Artifact(store, "classifier", "c")
    classifier.finish(classnames=list(NAMES))
    return Artifact(store, "predictions", "p"), classifier


def grow(places: tuple[Artifact, Artifact], *shards: tuple[int, ...], limits: Drift | None = None) -> dict[str, Any]:
    """Commit shards of so many ants, bees and unreadable images, those before included, and publish.

    A shard of which something is gone is committed under another state, as `Shard.state` says.
    """
    predictions, classifier = places
    listed = []
    for i, (ants, bees, *more) in enumerate(shards):
        unreadable, gone = (*more, 0, 0)[:2]
        shard = Shard(f"s{i}", ants + bees + unreadable + gone, removed=frozenset(map(str, range(gone))))
        listed.append(shard)
        classes = {str(c): n for c, n in enumerate((ants, bees)) if n}
        images = ants + bees
        figures = {"images": images, "rejected": unreadable, "classes": classes, "confidence": 0.0, "agreement": 0.0}
        predictions.commit(shard.state, parts=[f"parts/{i}"], rows=images, figures=figures)
    corpus = Corpus(Artifact(predictions.store, "corpus", "r"), ("/photos",), tuple(s for s in listed if s.rows))
    return publish(predictions, corpus, {}, classifier, limits or Drift())


def alerts(manifest: dict[str, Any], limits: Drift | None = None) -> list[str]:
    return drift.alerts(manifest["drift"], manifest["removed"], manifest["listed_before"], limits or Drift())


def test_the_first_time_there_is_nothing_to_compare_with(places: tuple[Artifact, Artifact]) -> None:
    first = grow(places, (300, 100))
    assert (first["images"], first["new"], first["drift"], first["waiting"]) == (400, 400, None, [])
    assert grow(places, (300, 100)) == first  # nothing new: nothing is written


def test_few_new_images_add_up_beside_what_was_there_before_them(places: tuple[Artifact, Artifact]) -> None:
    grow(places, (300, 100))
    first = grow(places, (300, 100), (0, 60))
    assert (first["drift"], first["waiting"]) == (None, ["s1"])
    second = grow(places, (300, 100), (0, 60), (10, 30))
    assert (second["new"], second["waiting"]) == (40, [])
    new = {"images": 100, "rejected": 0, "classes": {"0": 10, "1": 90}, "confidence": 0.0, "agreement": 0.0}
    old = {"images": 400, "rejected": 0, "classes": {"0": 300, "1": 100}, "confidence": 0.0, "agreement": 0.0}
    assert {k: v for k, v in second["drift"].items() if k != "time"} == drift.compare(new, old, NAMES)


def test_an_alert_stands_until_enough_newer_images_look_otherwise(places: tuple[Artifact, Artifact]) -> None:
    grow(places, (300, 0))
    raised = grow(places, (300, 0), (0, 144))
    assert len(alerts(raised)) == 1
    one_more = grow(places, (300, 0), (0, 144), (1, 0))
    assert (alerts(one_more), one_more["waiting"]) == (alerts(raised), ["s2"])
    enough = grow(places, (300, 0), (0, 144), (1, 0), (66, 33))
    assert (alerts(enough), enough["drift"]["images"]) == ([], 100)


def test_a_larger_number_of_images_adds_up_over_nights_too(places: tuple[Artifact, Artifact]) -> None:
    limits = Drift(min_images=250)
    shards = [(500, 0)]
    grow(places, *shards, limits=limits)
    seen = []
    for _ in range(3):
        shards.append((0, 100))
        seen.append(len(alerts(grow(places, *shards, limits=limits), limits)))
    assert seen == [0, 0, 1]


def test_a_night_of_unreadable_images_is_an_alert(places: tuple[Artifact, Artifact]) -> None:
    grow(places, (300, 0))
    (alert,) = alerts(grow(places, (300, 0), (0, 0, 150)))
    assert alert.startswith("The share of unreadable images is 100.0 points higher")


def test_what_is_gone_counts_on_neither_side(places: tuple[Artifact, Artifact]) -> None:
    grow(places, (300, 300))
    waits = grow(places, (300, 300), (50, 20, 20))
    assert waits["removed"] == 0
    after = grow(places, (300, 0, 0, 300), (0, 20, 20, 50), (0, 90))  # ants of the old, bees of the new are left
    assert (after["removed"], after["listed_before"]) == (350, 690)
    new = {"images": 110, "rejected": 20, "classes": {"1": 110}, "confidence": 0.0, "agreement": 0.0}
    old = {"images": 300, "rejected": 0, "classes": {"0": 300}, "confidence": 0.0, "agreement": 0.0}
    assert {k: v for k, v in after["drift"].items() if k != "time"} == drift.compare(new, old, NAMES)


def test_many_images_that_are_gone_are_an_alert_until_the_corpus_changes(places: tuple[Artifact, Artifact]) -> None:
    grow(places, (200, 200), (20, 20))
    few = grow(places, (180, 180, 0, 40), (20, 20))
    assert (few["removed"], alerts(few)) == (40, [])
    shard_gone = grow(places, (180, 180, 0, 40), (0, 0))
    assert (shard_gone["removed"], shard_gone["listed_before"]) == (40, 400)
    assert alerts(shard_gone) == []
    assert alerts(shard_gone, Drift(max_removed=0.09)) == [
        "40 of 400 images are gone or have changed since the run before; drift.max_removed is 0.09."
    ]
    assert alerts(grow(places, (180, 180, 0, 40), (0, 0), (1, 0)), Drift(max_removed=0.09)) == []


def test_without_any_readable_image_before_no_classes_are_compared(places: tuple[Artifact, Artifact]) -> None:
    grow(places, (0, 0, 5))
    compared = grow(places, (0, 0, 5), (70, 70))["drift"]
    assert compared["class_shift"] is None
    assert compared["rejected_rise"] == -1
