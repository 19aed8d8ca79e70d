"""Reports of storages with gaps: no labels, images that are away, nights and older versions in between."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from report_pages import FILE_NAMES, MakeRun, Seen, commits_of, page_of, reported, table_of, text_of, write_images

from benchmarks.synthetic_run import SyntheticRun, commit_predictions
from upl_ray.corpus.datasets import LAYOUTS
from upl_ray.corpus.shards import list_corpus
from upl_ray.errors import JobError
from upl_ray.pipeline.predictions import publish
from upl_ray.report.page import write_report
from upl_ray.storage import schema
from upl_ray.storage.step import open_step
from upl_ray.storage.store import Store

OPENING_RECORD = 40  # bytes of the first record of an event file: a frame of 16, a time, the version of the format


def own_confidence(store: Store) -> float:
    """Mean confidence of the target's own zero-shot labels, the last of the three labelers."""
    folder = store.read_json("run.json")["folders"]["variants"]["upl*"]["pseudo_labels"]
    rows = [r for c in commits_of(store, folder) for r in c]
    return float(np.mean([r["backbone_confidences"][-1] for r in rows]))


def test_without_labels_the_page_says_what_it_does_not_know(nasty: Store, make_run: MakeRun) -> None:
    store = reported(make_run(("a", "b", "c"), variants=("upl*",), labels="none"))
    text = text_of(page_of(store))
    assert "nothing on this page is an accuracy" in text
    assert f"that of zero-shot {100 * own_confidence(store):.1f} %" in text
    assert "Agreement (no accuracy)" in text
    assert "accuracy.png" not in store.names("report/figures")
    assert not re.search(r"\d+ of \d+ right|dashed frame|calibration error", text)
    assert re.search(r"\d+ of \d+ right|dashed frame|calibration error", page_of(nasty))


def test_cards_of_an_unlabeled_corpus_promise_no_true_classes_though_held_out_images_have_them(
    make_run: MakeRun, tmp_path: Path
) -> None:
    write_images(tmp_path / "scored", ("a", "b", "c"), FILE_NAMES)
    store = reported(make_run(("a", "b", "c"), labels="none", scored=tmp_path / "scored"))
    text = text_of(page_of(store))
    assert "of 18 held-out images right" in text
    assert "calibration error" in text
    assert not re.search(r"\d+ of \d+ right|dashed frame|most wrong labels", text)
    assert json.loads(next(t for t in Seen(page_of(store)).text if t.startswith('{"corpus"')))["labeled"] is False


def test_missing_images_leave_a_place_and_a_reason(tmp_path: Path, make_run: MakeRun) -> None:
    store = make_run(top_k=6).write()
    (tmp_path / "images" / "a" / FILE_NAMES[0]).unlink()
    (tmp_path / "images" / "b" / FILE_NAMES[1]).write_bytes(b"no image any more")
    write_report(store)
    (folder,) = [p.name for p in Path(store.uri).glob("thumbnails-*")]
    missing = [r for r in store.read_table(f"{folder}/sprites.parquet")["missing"].to_pylist() if r != "{}"]
    assert "missing file" in "".join(missing)
    assert "not an image" in "".join(missing)


def nightly(store: Store, run: SyntheticRun) -> None:
    """Change the storage of a run as jobs/predict.py does: new listing, new predictions, no pseudo-labels."""
    corpus = list_corpus(store, run.config().corpus, run.shard_size)
    folders = store.read_json("run.json")["folders"]["variants"]
    for made in folders.values():
        predictions, classifier = (open_step(store, made[s]) for s in ("predictions", "classifier"))
        for shard in corpus.shards:
            if shard.state not in predictions.committed():
                ids = [i for i in corpus.listing(shard)["image_id"].to_pylist() if i not in shard.removed]
                row = (0, run.classnames[0], 1.0, [0] * run.members, 0, None)
                columns = [[value] * len(ids) for value in row]
                commit_predictions(predictions, shard, pa.table([ids, *columns], schema=schema.PREDICTIONS))
        publish(predictions, corpus, classifier)


def files_of(store: Store) -> dict[str, bytes]:
    """All files of a report; those for TensorBoard without their first record, which has the time of writing."""
    files = {n: store.read(f"report/{n}") for n in store.names_below("report") if n != "manifest.json"}
    return {n: data[OPENING_RECORD:] if n.startswith("tensorboard/") else data for n, data in files.items()}


def test_nothing_that_a_nightly_job_does_changes_the_report_of_the_run(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(variants=("upl*", "upl"), rejected={f"a/{FILE_NAMES[0]}": "damaged"}, shard_size=3)
    store = reported(run)
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


def test_labels_that_were_taken_away_are_missed_by_their_export_and_by_nothing_before(make_run: MakeRun) -> None:
    store = make_run().write()
    (commit,) = Path(store.uri).glob("predictions-*/commits/*.json")
    commit.unlink()
    with pytest.raises(JobError, match=r"1 of 1 shards .* have no pseudo-labels .* Run the job again"):
        write_report(store)
    assert table_of(store, "accuracy")  # its numbers are those of the scores


def test_a_data_set_s_labels_are_labels_though_the_configuration_does_not_name_them(tmp_path: Path) -> None:
    names = ("big cat", "747-100")
    write_images(tmp_path / "dtd" / "images", names, tuple(f"{i}.png" for i in range(9)))
    layout = LAYOUTS["dtd"]
    parts = {"train": range(5), "val": range(5, 6), "test": range(6, 9)}
    split = {p: [[f"{n}/{i}.png", c, n] for c, n in enumerate(names) for i in of] for p, of in parts.items()}
    (tmp_path / "dtd" / layout.split).write_text(json.dumps(split))
    store = reported(SyntheticRun(tmp_path / "run", tmp_path, names, dataset="dtd"))
    text = text_of(page_of(store))
    assert "of 6 held-out images right" in text
    assert "10 images under" in text
    assert "train.parquet" in text
    assert "No labels were given" not in text
    shown = {(r["images"], r["what"]): r["share"] for r in table_of(store, "accuracy")}
    scores = store.read_json("run.json")["scores"]["upl*"]["predictions"]
    for part, name in (("corpus", "corpus"), ("scored", "held-out images")):
        assert shown[name, "UPL*, ensemble"] == pytest.approx(scores[part]["accuracy"]["ensemble"])


def test_a_corpus_that_is_away_costs_the_pictures_only_until_it_is_back(tmp_path: Path, make_run: MakeRun) -> None:
    store = make_run().write()
    (tmp_path / "images").rename(tmp_path / "away")
    write_report(store)
    assert "could not be shown" in page_of(store)
    assert list(Path(store.uri).glob("thumbnails-*")) == []
    (tmp_path / "away").rename(tmp_path / "images")
    write_report(store, again=True)
    assert "could not be shown" not in page_of(store)
