"""Reports of storages with gaps: no labels, images that are away, nights and older versions in between."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from report_pages import FILE_NAMES, Seen, commits_of, page_of, write_images

from benchmarks.synthetic_run import SyntheticRun, commit_predictions
from upl_ray import schema
from upl_ray.artifacts import Artifact, Store
from upl_ray.config import JobError
from upl_ray.corpus import list_corpus
from upl_ray.datasets.layouts import LAYOUTS
from upl_ray.predict_config import Drift
from upl_ray.predictions import publish
from upl_ray.report.page import write_report


def own_confidence(store: Store) -> float:
    """Mean confidence of the target's own zero-shot labels, the last of the three labelers."""
    folder = store.read_json("run.json")["artifacts"]["variants"]["upl*"]["pseudo"]
    rows = [r for c in commits_of(store, folder) for r in c]
    return float(np.mean([r["backbone_confidences"][-1] for r in rows]))


def test_without_labels_the_page_says_what_it_does_not_know(nasty: Store, tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a", "b", "c"), FILE_NAMES)
    store = SyntheticRun(tmp_path / "run", tmp_path / "images", ("a", "b", "c"), ("upl*",), labels="none").write()
    write_report(store)
    text = " ".join("".join(Seen(page_of(store)).text).split())
    assert "nothing on this page is an accuracy" in text
    assert f"that of zero-shot {100 * own_confidence(store):.1f} %" in text
    assert "Agreement (no accuracy)" in text
    assert "accuracy.png" not in store.names("report/figures")
    assert not re.search(r"\d+ of \d+ right|dashed frame|calibration error", text)
    assert re.search(r"\d+ of \d+ right|dashed frame|calibration error", page_of(nasty))


def test_cards_of_an_unlabeled_corpus_promise_no_true_classes_though_held_out_images_have_them(tmp_path: Path) -> None:
    for part in ("images", "scored"):
        write_images(tmp_path / part, ("a", "b", "c"), FILE_NAMES)
    places = (tmp_path / "run", tmp_path / "images", ("a", "b", "c"), ("upl",))
    store = SyntheticRun(*places, labels="none", scored=tmp_path / "scored").write()
    write_report(store)
    seen = Seen(page_of(store))
    text = " ".join("".join(seen.text).split())
    assert "of 18 held-out images right" in text
    assert "calibration error" in text
    assert not re.search(r"\d+ of \d+ right|dashed frame|most wrong labels", text)
    assert json.loads(next(t for t in seen.text if t.startswith('{"images"')))["labeled"] is False


def test_missing_images_leave_a_place_and_a_reason(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a", "b"), FILE_NAMES)
    store = SyntheticRun(tmp_path / "run", tmp_path / "images", ("a", "b"), ("upl",), top_k=6).write()
    (tmp_path / "images" / "a" / FILE_NAMES[0]).unlink()
    (tmp_path / "images" / "b" / FILE_NAMES[1]).write_bytes(b"no image any more")
    write_report(store)
    (folder,) = [p.name for p in Path(store.uri).glob("thumbnails-*")]
    missing = [r for r in store.read_table(f"{folder}/sprites.parquet")["missing"].to_pylist() if r != "{}"]
    assert "missing file" in "".join(missing)
    assert "not an image" in "".join(missing)


def nightly(store: Store, run: SyntheticRun) -> None:
    """What jobs/predict.py does to the storage of a run: new listing, new predictions, no pseudo-labels."""
    corpus = list_corpus(store, run.config().corpus, run.shard_size)
    folders = store.read_json("run.json")["artifacts"]["variants"]
    for made in folders.values():
        predictions, classifier = (Artifact(store, *made[s].split("-")) for s in ("predictions", "classifier"))
        for shard in corpus.shards:
            if shard.state not in predictions.committed():
                ids = [i for i in corpus.listing(shard)["image_id"].to_pylist() if i not in shard.removed]
                said = [
                    [0] * len(ids),
                    [run.classnames[0]] * len(ids),
                    [1.0] * len(ids),
                    [[0] * run.members] * len(ids),
                ]
                commit_predictions(predictions, shard, pa.table([ids, *said], schema=schema.PREDICTIONS))
        publish(predictions, corpus, {"later.png": "damaged"}, classifier, Drift())


def files_of(store: Store) -> dict[str, bytes]:
    return {n: store.read(f"report/{n}") for n in store.names_below("report") if n != "manifest.json"}


def test_nothing_that_a_nightly_job_does_changes_the_report_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images", ("a", "b"), FILE_NAMES)
    rejected = {f"a/{FILE_NAMES[0]}": "damaged"}
    run = SyntheticRun(tmp_path / "run", tmp_path / "images", ("a", "b"), rejected=rejected, shard_size=3)
    store = run.write()
    write_report(store)
    before = files_of(store)
    (tmp_path / "images" / "a" / FILE_NAMES[1]).unlink()
    changed = tmp_path / "images" / "b" / FILE_NAMES[4]
    changed.write_bytes(changed.read_bytes() + b" ")
    monkeypatch.setattr(sys, "argv", ["jobs/predict.py", "run", "images"])
    nightly(store, run)
    write_report(store)
    assert files_of(store) == before  # it is not even made again
    write_report(store, again=True)
    after = files_of(store)
    pages = [files.pop("index.html").decode() for files in (before, after)]
    assert after == before
    assert pages[1].count("has grown since") == 2
    assert "jobs/predict.py" not in pages[1]
    differ = [pair for pair in zip(*(p.splitlines() for p in pages), strict=True) if pair[0] != pair[1]]
    assert len(differ) == 2  # the two that say so


def test_a_run_of_an_older_version_whose_corpus_was_listed_anew_is_told_in_one_sentence(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a", "b"), FILE_NAMES)
    run = SyntheticRun(tmp_path / "run", tmp_path / "images", ("a", "b"), ("upl",))
    store = run.write()
    summary = store.read_sealed("run.json")
    corpus = list_corpus(store, run.config().corpus, run.shard_size).artifact.folder
    summary["artifacts"]["corpora"] = {"corpus": corpus}
    del summary["sources"]
    store.write_sealed("run.json", summary)
    write_report(store)
    accuracy = store.read_json("report/tables/accuracy.json")
    assert "an image whose true label" in page_of(store)
    (tmp_path / "images" / "a" / FILE_NAMES[1]).unlink()
    nightly(store, run)
    with pytest.raises(JobError, match=r"1 of 1 shards .* have no pseudo-labels .* Run the job again"):
        write_report(store)
    assert store.read_json("report/tables/accuracy.json") == accuracy


def test_a_data_set_s_labels_are_labels_though_the_configuration_does_not_name_them(tmp_path: Path) -> None:
    names = ("big cat", "747-100")
    write_images(tmp_path / "dtd" / "images", names, tuple(f"{i}.png" for i in range(9)))
    layout = LAYOUTS["dtd"]
    parts = {"train": range(5), "val": range(5, 6), "test": range(6, 9)}
    split = {p: [[f"{n}/{i}.png", c, n] for c, n in enumerate(names) for i in of] for p, of in parts.items()}
    (tmp_path / "dtd" / layout.split).write_text(json.dumps(split))
    store = SyntheticRun(tmp_path / "run", tmp_path, names, dataset="dtd").write()
    write_report(store)
    text = " ".join("".join(Seen(page_of(store)).text).split())
    assert "of 6 held-out images right" in text
    assert "10 images under" in text
    assert "train.parquet" in text
    assert "No labels were given" not in text
    shown = {(r["images"], r["what"]): r["share"] for r in store.read_json("report/tables/accuracy.json")}
    scores = store.read_json("run.json")["scores"]["upl*"]["predictions"]
    for part, name in (("corpus", "corpus"), ("scored", "held-out images")):
        assert shown[name, "UPL*, ensemble"] == pytest.approx(scores[part]["accuracy"]["ensemble"])


def test_a_corpus_that_is_away_costs_the_pictures_only_until_it_is_back(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a", "b"), FILE_NAMES)
    store = SyntheticRun(tmp_path / "run", tmp_path / "images", ("a", "b"), ("upl",)).write()
    (tmp_path / "images").rename(tmp_path / "away")
    write_report(store)
    assert "could not be shown" in page_of(store)
    assert list(Path(store.uri).glob("thumbnails-*")) == []
    (tmp_path / "away").rename(tmp_path / "images")
    write_report(store, again=True)
    assert "could not be shown" not in page_of(store)
