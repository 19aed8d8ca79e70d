"""How the manifest of predictions grows with its corpus, over jobs and classifiers; no Ray, real files."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from made_up import figures

from upl_ray import drift
from upl_ray.artifacts import Artifact, Store
from upl_ray.corpus import Corpus, Shard
from upl_ray.figures import Figures, listed
from upl_ray.predict_config import Drift
from upl_ray.predictions import Published, publish

NAMES = ("ant", "bee")


def listing(store: Store, shards: dict[str, Figures], address: str = "/photos") -> Corpus:
    """A run lists the images: the corpus' manifest is that of the newest listing."""
    artifact = Artifact(store, "corpus", address.strip("/"))
    found = tuple(Shard(name, listed(f)) for name, f in shards.items())
    artifact.finish(roots=[address], images=0, shards={address: [s.record() for s in found]})
    return Corpus(artifact, (address,), found)


def label(
    corpus: Corpus, shards: dict[str, Figures], classifier: str = "c", limits: Drift | None = None, main: bool = False
) -> Published:
    """Commit the shards' predictions by a classifier, and publish, as the nightly job or the main one does."""
    store = corpus.artifact.store
    made = Artifact(store, "classifier", classifier)
    made.finish(classnames=list(NAMES))
    predictions = Artifact(store, "predictions", f"{classifier}{corpus.artifact.fingerprint}")
    for name, found in shards.items():
        predictions.commit(name, parts=[f"parts/{name}"], rows=found["images"], figures=found)
    return publish(predictions, corpus, {}, made, None if main else limits or Drift())


def night(store: Store, shards: dict[str, Figures], **how: Any) -> dict[str, Any]:
    return label(listing(store, shards), shards, **how).manifest


def main_job(store: Store, shards: dict[str, Figures], **how: Any) -> dict[str, Any]:
    return night(store, shards, main=True, **how)


def alerts(manifest: dict[str, Any]) -> list[str]:
    growth = manifest["growth"]
    return drift.alerts(growth["drift"], growth["removed"], growth["listed_before"], Drift())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_the_manifest_is_that_of_the_images_as_they_are_now(store: Store) -> None:
    first = night(store, {"a": figures(300, 100, rejected=5)})
    assert (first["images"], first["parts"], first["shards"], first["growth"]["new"]) == (400, ["parts/a"], ["a"], 400)
    second = night(store, {"b": figures(60, 60)})
    assert (second["images"], second["parts"], second["figures"]) == (120, ["parts/b"], figures(60, 60))
    assert (second["growth"]["new"], second["growth"]["removed"]) == (120, 405)


def test_nothing_new_writes_nothing(store: Store) -> None:
    shards = {"a": figures(300, 100)}
    first = night(store, shards)
    before = {p: p.stat().st_mtime_ns for p in Path(store.uri).glob("predictions-*/**/*") if "commits" not in p.parts}
    again = label(listing(store, shards), shards)
    assert (again.manifest, again.changed, again.superseded) == (first, False, False)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_every_night_with_a_change_leaves_a_file(store: Store) -> None:
    shards = {"a": figures(300)}
    night(store, shards)
    night(store, shards | {"b": figures(0, 150)})
    night(store, shards | {"b": figures(0, 150)})
    (file,) = Path(store.uri).glob("predictions-*/growth/*.json")
    about = json.loads(file.read_text())
    assert (about["new"], about["waiting"], about["drift"]["classes"]["images"]) == (150, {}, 150)
    assert about["drift"]["classes"]["classifier"] == "classifier-c"


def test_the_main_job_compares_nothing_and_lets_its_images_wait(store: Store) -> None:
    shards = {"a": figures(300)}
    night(store, shards)
    shards["b"] = figures(0, 150)
    raised = night(store, shards)
    assert len(alerts(raised)) == 1
    shards["c"] = figures(60, 30)
    waits = night(store, shards)
    shards["d"] = figures(60, 30)
    trained = main_job(store, shards)
    assert list(trained["growth"]["waiting"]) == ["c", "d"]
    assert trained["growth"]["drift"] == waits["growth"]["drift"] == raised["growth"]["drift"]
    published = label(listing(store, shards), shards)  # no image has changed, but now there is somebody to compare
    assert (published.changed, published.manifest["growth"]["waiting"]) == (False, {})
    assert published.manifest["growth"]["drift"]["classes"]["images"] == 180
    assert alerts(published.manifest) == []
    assert night(store, shards) == published.manifest


def test_the_images_of_the_training_are_what_the_first_night_compares_with(store: Store) -> None:
    main_job(store, {"a": figures(300)})
    first = night(store, {"a": figures(300), "b": figures(0, 150)})
    assert first["growth"]["new"] == 150
    assert len(alerts(first)) == 1


def test_another_classifier_goes_on_where_the_one_before_was(store: Store) -> None:
    shards = {"a": figures(300, 0)}
    night(store, shards, classifier="c")
    shards["b"] = figures(30, 30)
    night(store, shards, classifier="c")
    anew = {"a": figures(150, 150), "b": figures(30, 30), "d": figures(25, 25)}  # it sees bees among the old ones
    first = label(listing(store, anew), anew, classifier="e")
    assert first.changed
    assert (first.manifest["growth"]["new"], first.manifest["growth"]["removed"]) == (50, 0)
    found = first.manifest["growth"]["drift"]["classes"]
    assert (found["images"], found["images_before"], found["classifier"]) == (110, 300, "classifier-e")
    assert found["class_shift"] == 0
    assert label(listing(store, anew), anew, classifier="e").manifest == first.manifest


def test_each_of_many_classifiers_goes_on_from_the_newest_one(store: Store) -> None:
    shards = {"a": figures(300)}
    night(store, shards, classifier="z")
    for i, classifier in enumerate("ycxbd"):
        shards[f"n{i}"] = figures(30)
        growth = night(store, shards, classifier=classifier)["growth"]
        assert (growth["new"], growth["changes"]) == (30, i + 2)
        assert list(growth["waiting"]) == ([] if i == 3 else [f"n{k}" for k in range(4 if i > 3 else 0, i + 1)])


def test_another_corpus_has_nothing_to_go_on_from(store: Store) -> None:
    shards = {"a": figures(300)}
    night(store, shards)
    elsewhere = label(listing(store, shards, "/others"), shards, classifier="e").manifest["growth"]
    assert (elsewhere["new"], elsewhere["seen"]["images"], elsewhere["waiting"]) == (300, 300, {})


def test_the_older_one_of_two_runs_leaves_the_manifest_to_the_newer_one(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    early = {"a": figures(300), "b": figures(60, 60)}
    late = early | {"c": figures(70, 70)}
    night(store, {"a": figures(300)})
    older, newer = listing(store, early), listing(store, late)
    with caplog.at_level(logging.WARNING, "upl_ray"):
        first = label(older, early)
    assert "a newer run has listed the images since" in caplog.text
    assert (first.superseded, first.changed, first.manifest["images"]) == (True, False, 300)
    second = label(newer, late)
    assert (second.superseded, second.changed, second.manifest["growth"]["new"]) == (False, True, 260)
    last = label(older, early)
    assert (last.superseded, last.changed, last.manifest) == (True, False, second.manifest)
    assert night(store, late) == second.manifest
    assert second.manifest["growth"]["removed"] == 0


def test_an_older_run_publishes_where_there_is_nothing_yet(store: Store) -> None:
    early, late = {"a": figures(300)}, {"a": figures(300), "b": figures(60, 60)}
    older, newer = listing(store, early), listing(store, late)
    assert label(older, early).changed
    assert label(newer, late).manifest["growth"]["new"] == 120


def test_a_classifier_that_comes_back_goes_on_from_the_nights_of_the_other_one(store: Store) -> None:
    shards = {f"s{i}": figures(30) for i in range(10)}
    night(store, shards, classifier="a")
    for i in range(6):
        del shards[f"s{i}"]
        shards[f"n{i}"] = figures(30)
        night(store, shards, classifier="b")
    shards["late"] = figures(5)
    back = night(store, shards, classifier="a")
    assert (back["growth"]["new"], back["growth"]["removed"], alerts(back)) == (5, 0, [])
    shards["later"] = figures(3)
    for classifier, new in (("c", 3), ("b", 0), ("a", 0)):
        assert night(store, shards, classifier=classifier)["growth"]["new"] == new
    shards["last"] = figures(2)
    for classifier, new in (("a", 2), ("b", 0)):  # both had published the same images before
        assert night(store, shards, classifier=classifier)["growth"]["new"] == new


def test_a_main_job_that_listed_before_a_night_makes_none_of_its_images_new_again(store: Store) -> None:
    early = {"a": figures(300), "b": figures(30, 30)}
    night(store, early)
    older = listing(store, early)  # the main job begins
    compared, waits = {"n": figures(75, 75)}, {"w": figures(40)}
    night(store, early | compared)
    night(store, early | compared | waits)
    trained = label(older, early, classifier="fresh", main=True)  # and ends
    assert trained.manifest["images"] == 360
    after = night(store, early | compared | waits, classifier="fresh")
    assert (after["growth"]["removed"], list(after["growth"]["waiting"])) == (0, ["w"])
    assert after["growth"]["new"] == 40  # no classifier has compared them yet
    grown = night(store, early | compared | waits | {"x": figures(7)}, classifier="fresh")
    assert (grown["growth"]["new"], list(grown["growth"]["waiting"])) == (7, ["w", "x"])


def test_a_folder_with_other_content_every_night_is_compared_by_classifiers_that_take_turns(store: Store) -> None:
    for i in range(4):
        night(store, {f"s{i}": figures(60, 60)}, classifier="ab"[i % 2])
    last = night(store, {"bees": figures(0, 120)}, classifier="a")
    found = last["growth"]["drift"]["classes"]
    assert (found["images"], found["images_before"]) == (120, 240)  # what this classifier has seen itself
    assert len(alerts(last)) >= 1


def test_a_damaged_manifest_of_a_classifier_that_nobody_uses_stops_no_night(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    shards = {"a": figures(300)}
    old = night(store, shards, classifier="old")
    night(store, shards, classifier="new")
    (Path(store.uri) / f"predictions-{old['fingerprint']}" / "manifest.json").write_text("{")
    with caplog.at_level(logging.WARNING, "upl_ray"):
        assert night(store, shards | {"b": figures(30)}, classifier="new")["growth"]["new"] == 30
    assert "is damaged" in caplog.text


def test_classifiers_that_refuse_other_images_take_turns_without_news(store: Store) -> None:
    corpus = listing(store, shards := {"a": figures(300, rejected=5)})
    label(corpus, shards, classifier="a")
    label(corpus, {"a": figures(305)}, classifier="b")
    for classifier in "abab":
        again = label(corpus, shards if classifier == "a" else {"a": figures(305)}, classifier=classifier)
        assert not again.changed
