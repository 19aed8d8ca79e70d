"""Nights of a corpus: what the manifest of predictions names, and which images are compared; no Ray, real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_up import tally

from upl_ray.config.settings import Drift
from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.pipeline.nightly import publish_night
from upl_ray.pipeline.predictions import publish
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store
from upl_ray.upl.tally import Tally, total

NAMES = ("ant", "bee")
Shards = dict[str, Tally]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def commit(store: Store, shards: Shards, classifier: str, gone: dict[str, int]) -> tuple[Step, Corpus, Step]:
    """The state after all shards are labeled; of some, so many images are `gone`, which their sums no longer hold."""
    made, step = Step(store, "classifier", classifier), Step(store, "predictions", classifier)
    made.finish(classnames=list(NAMES))
    corpus = Corpus(
        Step(store, "corpus", "photos"),
        ("/photos",),
        tuple(
            Shard(name, t.listed + gone.get(name, 0), removed=frozenset(map(str, range(gone.get(name, 0)))))
            for name, t in shards.items()
        ),
    )
    for shard in corpus.shards:
        step.commit(shard.state, parts=[f"parts/{shard.state}"], rows=1, tally=shards[shard.id].to_json())
    return step, corpus, made


def night(store: Store, shards: Shards, classifier: str = "c", **gone: int) -> dict[str, Any]:
    return publish_night(*commit(store, shards, classifier, gone), Drift())


def manifest(store: Store, classifier: str = "c") -> dict[str, Any]:
    return Step(store, "predictions", classifier).manifest()


def test_the_manifest_is_that_of_the_images_as_they_are_now(store: Store) -> None:
    first = night(store, {"a": tally(300, 100, rejected=5), "b": tally(9)})
    assert (first["new"], first["removed"], first["drift"], first["alerts"]) == (414, 0, None, [])
    night(store, {"a": tally(290, 100, rejected=5), "c": tally(60, 60)}, a=10)
    found = manifest(store)
    assert (found["images"], found["shards"][1:]) == (510, ["c"])
    assert found["parts"] == [f"parts/{s}" for s in found["shards"]]
    assert found["tally"] == total([tally(290, 100, rejected=5), tally(60, 60)]).to_json()


def test_new_images_stand_beside_all_that_were_published_before(store: Store) -> None:
    shards = {"a": tally(300, 100), "b": tally(50, rejected=2)}
    night(store, shards)
    second = night(store, shards | {"c": tally(0, 120)})
    assert (second["new"], second["removed"]) == (120, 0)
    found = second["drift"]
    assert (found["new"], found["before"]) == (120, 452)
    assert found["classes"]["shift"] == pytest.approx(350 / 450)
    assert [a.rpartition("drift.")[2] for a in second["alerts"]] == ["max_class_shift is 0.1."]
    third = night(store, shards | {"c": tally(0, 120), "d": tally(70, 50)})
    assert (third["drift"]["before"], third["alerts"]) == (572, [])


def test_an_alert_stands_until_the_images_change_and_nothing_new_writes_nothing(store: Store) -> None:
    night(store, {"a": tally(300)})
    shards = {"a": tally(300), "b": tally(0, 150)}
    raised = night(store, shards)
    before = {p: p.stat().st_mtime_ns for p in Path(store.uri).glob("predictions-*/manifest.json")}
    again = night(store, shards)
    assert (again["new"], again["alerts"], again["drift"]) == (0, raised["alerts"], raised["drift"])
    assert len(again["alerts"]) == 1
    assert {p: p.stat().st_mtime_ns for p in before} == before
    few = night(store, shards | {"c": tally(5)})
    assert (few["new"], few["alerts"]) == (5, [])
    assert "5 new images" in few["drift"]["note"]
    assert night(store, shards | {"c": tally(5), "d": tally(100, 50)})["drift"]["before"] == 455


def test_a_folder_whose_content_is_another_one_every_night_is_compared_every_night(store: Store) -> None:
    for i in range(3):
        found = night(store, {f"n{i}": tally(75, 75)})
        assert (found["new"], found["removed"]) == (150, 150 if i else 0)
    bees = night(store, {"bees": tally(0, 150)})
    assert [a.rpartition("drift.")[2].split()[0] for a in bees["alerts"]] == ["max_removed", "max_class_shift"]


def test_losses_and_new_images_do_not_cancel(store: Store) -> None:
    night(store, {"a": tally(100, 100), "b": tally(90, rejected=10)})
    found = night(store, {"a": tally(60, 60), "c": tally(50, 30)}, a=80)  # b is gone, and a part of a
    assert (found["new"], found["removed"], found["drift"]["before"]) == (80, 180, 300)


def test_each_classifier_knows_its_own_nights_only(store: Store) -> None:
    shards = {"a": tally(300)}
    night(store, shards)
    night(store, shards, classifier="e")
    shards["b"] = tally(0, 150)
    assert len(night(store, shards)["alerts"]) == 1
    other = night(store, shards | {"c": tally(10)}, classifier="e")
    assert (other["new"], other["drift"]["before"]) == (160, 300)


def test_the_images_of_the_training_are_those_before_the_first_night(store: Store) -> None:
    publish(*commit(store, {"a": tally(300)}, "c", {}))
    first = night(store, {"a": tally(300)})
    assert (first["new"], first["drift"]) == (0, None)
    assert len(night(store, {"a": tally(300), "b": tally(0, 150)})["alerts"]) == 1


def test_of_two_runs_at_once_the_last_one_to_publish_wins_and_the_next_night_finds_all(store: Store) -> None:
    early: Shards = {"a": tally(300), "b": tally(60, 60)}
    late = early | {"c": tally(70, 70)}
    night(store, {"a": tally(300)})
    older, newer = (commit(store, shards, "c", {}) for shards in (early, late))
    publish_night(*newer, Drift())
    publish_night(*older, Drift())
    assert manifest(store)["shards"] == ["a", "b"]
    assert night(store, late)["new"] == 140
    assert manifest(store)["tally"] == total(late.values()).to_json()


def test_a_night_that_a_newer_listing_has_overtaken_publishes_nothing(store: Store) -> None:
    new, old = {"a": tally(300), "b": tally(100)}, {"a": tally(300)}
    night(store, new)
    step, corpus, classifier = commit(store, old, "c", {})
    before = step.manifest()
    found = publish_night(step, corpus, classifier, Drift(), superseded=True)
    assert (found["new"], found["removed"], found["alerts"]) == (0, 0, [])
    assert step.manifest() == before
