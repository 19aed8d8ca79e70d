"""How the manifest of predictions grows with its corpus; no Ray, real files."""

from pathlib import Path
from typing import Any

import pytest

from upl_ray import drift
from upl_ray.artifacts import Artifact, Store
from upl_ray.corpus import Corpus, Shard
from upl_ray.predictions import publish

NAMES = ("ant", "bee")


@pytest.fixture
def places(tmp_path: Path) -> tuple[Artifact, Artifact]:
    """Where predictions go, and a classifier of two classes."""
    store = Store(str(tmp_path))
    classifier = Artifact(store, "classifier", "c")
    classifier.finish(classnames=list(NAMES))
    return Artifact(store, "predictions", "p"), classifier


def grow(places: tuple[Artifact, Artifact], *shards: tuple[int, int]) -> dict[str, Any]:
    """Commit shards of so many ants and bees, those before included, and publish."""
    predictions, classifier = places
    listed = []
    for i, counts in enumerate(shards):
        listed.append(Shard(f"s{i}", sum(counts)))
        classes = {str(c): n for c, n in enumerate(counts) if n}
        figures = {"images": sum(counts), "rejected": 0, "classes": classes, "confidence": 0.0, "agreement": 0.0}
        predictions.commit(f"s{i}", parts=[f"parts/{i}"], rows=sum(counts), figures=figures)
    corpus = Corpus(Artifact(predictions.store, "corpus", "r"), ("/photos",), tuple(listed))
    return publish(predictions, corpus, {}, classifier)


def test_the_first_time_there_is_nothing_to_compare_with(places: tuple[Artifact, Artifact]) -> None:
    first = grow(places, (300, 100))
    assert (first["images"], first["new"], first["growth"]) == (400, 400, None)
    assert grow(places, (300, 100)) == first  # nothing new: nothing is written


def test_few_new_images_add_up_beside_what_was_there_before_them(places: tuple[Artifact, Artifact]) -> None:
    grow(places, (300, 100))
    grow(places, (300, 100), (0, drift.ENOUGH - 40))
    second = grow(places, (300, 100), (0, drift.ENOUGH - 40), (10, 30))
    assert second["new"] == 40
    figures, before = second["growth"]["figures"], second["growth"]["before"]
    assert (figures["images"], before["images"]) == (drift.ENOUGH, 400)
    assert second["growth"]["drift"] == drift.compare(figures, before, NAMES)
    third = grow(places, (300, 100), (0, drift.ENOUGH - 40), (10, 30), (5, 0))
    assert third["growth"]["figures"]["images"] == 5
    assert third["growth"]["before"] == second["figures"]


def test_without_any_readable_image_before_nothing_is_compared(places: tuple[Artifact, Artifact]) -> None:
    grow(places, (0, 0))
    assert grow(places, (0, 0), (7, 7))["growth"]["drift"] is None
