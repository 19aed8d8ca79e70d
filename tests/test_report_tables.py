"""Tables and exports of reports: every number from the storage's own tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from report_pages import FILE_NAMES, Seen, page_of, rows_of, write_images

from benchmarks.synthetic_run import SyntheticRun
from upl_ray import schema
from upl_ray.artifacts import Artifact, Store
from upl_ray.report import tally
from upl_ray.report.export import as_csv, as_json
from upl_ray.report.page import write_report
from upl_ray.snapshot import keep_snapshot, read_snapshot


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers() -> None:
    cells = ["=HYPERLINK(1)", "+cmd", "-a", "@x", "\tx", "-1.5", -1.5, "+3", "a=b", "", None]
    written = next(csv.reader(io.StringIO(as_csv(["x"] * len(cells), [cells]).decode().partition("\n")[2], newline="")))
    assert written[:5] == ["'=HYPERLINK(1)", "'+cmd", "'-a", "'@x", "'\tx"]
    assert written[5:] == ["-1.5", "-1.5", "+3", "a=b", "", ""]
    assert json.loads(as_json(["x"], [["=1"]]))[0]["x"] == "=1"


def test_exports_hold_every_image_once(nasty: Store) -> None:
    files = sum(1 for _ in Path(nasty.read_json("run.json")["config"]["corpus"]["uri"]).rglob("*.png"))
    for variant in ("upl-star", "upl"):
        predictions = rows_of(nasty, f"report/labels/predictions-{variant}.csv")
        assert len({r["image_id"] for r in predictions}) == len(predictions) == files - 1
        sample = nasty.read_json(f"report/labels/fiftyone-{variant}/labels.json")
        places = nasty.read_json(f"report/labels/fiftyone-{variant}/data.json")
        assert sample["labels"].keys() == places.keys()
        for key, row in zip(sorted(places), predictions, strict=True):
            assert Path(places[key]).is_file()
            assert places[key].endswith(row["image_id"])
            entry = sample["labels"][key]
            assert sample["classes"][entry["label"]] == row["classname"]
            assert entry["confidence"] == float(row["confidence"])
            assert not any("." in k for k in places)  # FiftyOne would take what follows for a suffix


def test_tables_are_the_same_as_csv_and_json(nasty: Store) -> None:
    names = [n.removesuffix(".csv") for n in nasty.names("report/tables") if n.endswith(".csv")]
    assert {"rejected", "accuracy", "class-bias", "losses", "classes-upl", "selected-upl-star"} <= set(names)
    for name in names:
        as_json: list[dict[str, Any]] = nasty.read_json(f"report/tables/{name}.json")
        as_csv = rows_of(nasty, f"report/tables/{name}.csv")
        assert [[("" if v is None else str(v)) for v in r.values()] for r in as_json] == [
            list(r.values()) for r in as_csv
        ]
    assert rows_of(nasty, "report/tables/rejected.csv")[0]["reason"] == "damaged image: <b>boo</b>"


def test_changed_images_are_those_on_which_zero_shot_and_the_ensemble_differ(nasty: Store) -> None:
    predicted = {r["image_id"]: r["label"] for r in rows_of(nasty, "report/labels/predictions-upl.csv")}
    zero_shot = {r["image_id"]: r["pseudo_label"] for r in rows_of(nasty, "report/labels/pseudo_labels-upl.csv")}
    changed = nasty.read_json("report/tables/changed-upl.json")
    differ = {i for i in predicted if predicted[i] != zero_shot[i]}
    assert {r["image_id"] for r in changed} == differ
    for row in changed:
        assert (str(row["before"]), str(row["after"])) == (zero_shot[row["image_id"]], predicted[row["image_id"]])
    confidences = [r["after_confidence"] for r in changed]
    assert confidences == sorted(confidences, reverse=True)


def test_starved_classes_come_first_then_those_of_least_agreement(nasty: Store) -> None:
    shown = [a for t, a in Seen(page_of(nasty)).elements if t == "article"]
    assert next(c["data-label"] for c in shown if c["data-variant"] == "upl-star") == "4"
    classes = {r["class"]: r for r in rows_of(nasty, "report/tables/classes-upl-star.csv")}
    order = [classes[c["data-label"] or ""] for c in shown if c["data-variant"] == "upl-star"]
    keys = [(int(r["selected"]), float(r["labelers_agree"] or 1)) for r in order]
    assert keys == sorted(keys)


def test_accuracies_of_the_page_are_those_of_the_scores(nasty: Store) -> None:
    scores = nasty.read_json("run.json")["scores"]["upl*"]
    shown = {r["what"]: float(r["share"]) for r in nasty.read_json("report/tables/accuracy.json")}
    accuracy = scores["zero_shot"]["corpus"]["accuracy"]
    assert shown["zero-shot, all fused"] == pytest.approx(accuracy["fused"])
    assert shown["zero-shot, beta"] == pytest.approx(accuracy["beta"])
    learned = scores["predictions"]["corpus"]["accuracy"]
    assert shown["UPL*, ensemble"] == pytest.approx(learned["ensemble"])
    assert f"{100 * learned['ensemble']:.1f} %" in page_of(nasty)


def labels_of_few(store: Store, run: SyntheticRun, few: set[str]) -> None:
    """Take the true labels of all images but a few out of the listings, as a manifest with gaps would have them."""
    summary = store.read_sealed("run.json")
    corpus = read_snapshot(Artifact(store, *summary["artifacts"]["corpora"]["corpus"].split("-")))
    shards = []
    for shard in corpus.shards:
        rows = corpus.listing(shard).to_pylist()
        gaps = [r | {"label": r["label"] if r["image_id"] in few else None} for r in rows]
        table = pa.Table.from_pylist(gaps, schema=schema.LISTING)
        shards.append(dataclasses.replace(shard, listing=store.write_hashed(f"gaps/{shard.id}", table)))
    kept = keep_snapshot(dataclasses.replace(corpus, shards=tuple(shards)), run.rejected)
    summary["artifacts"]["corpora"]["corpus"] = kept.folder
    for scores in summary["scores"].values():
        scores["predictions"]["corpus"]["labeled"] = len(few)
    store.write_sealed("run.json", summary)


def test_of_a_few_labeled_images_all_vote_and_confidence_is_held_against_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "VOTE_IMAGES", 4)
    names = ("a", "b", "c")
    write_images(tmp_path / "images", names, tuple(f"{i}.png" for i in range(30)))
    run = SyntheticRun(tmp_path / "run", tmp_path / "images", names, ("upl",))
    store = run.write()
    few = {"a/3.png", "b/5.png", "c/7.png"}
    labels_of_few(store, run, few)
    write_report(store)
    assert "on 3 images: mean and range" in " ".join("".join(Seen(page_of(store)).text).split())
    pseudo = {r["image_id"]: r for r in rows_of(store, "report/labels/pseudo_labels-upl.csv")}
    for row in store.read_json("report/tables/confidence-upl.json"):
        mine = [pseudo[i] for i in few if pseudo[i]["classname"] == row["class"]]
        assert row["labeled"] == len(mine)
        if mine:
            assert row["confidence"] == pytest.approx(np.mean([float(r["confidence"]) for r in mine]), abs=1e-5)
        else:
            assert row["confidence"] is None


def test_no_figure_is_drawn_of_votes_that_nobody_cast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "VOTE_IMAGES", 0)  # chance may leave none of a few images
    write_images(tmp_path / "images", ("a", "b"), FILE_NAMES)
    store = SyntheticRun(tmp_path / "run", tmp_path / "images", ("a", "b"), ("upl",)).write()
    write_report(store)
    assert "What more members bring" not in page_of(store)


def test_every_class_has_its_accuracies_and_every_confusion_is_written_for_many_classes(tmp_path: Path) -> None:
    names = tuple(f"class {i:02d}" for i in range(30))  # more than a figure shows
    write_images(tmp_path / "images", names, ("1.png", "2.png", "3.png"))
    store = SyntheticRun(tmp_path / "run", tmp_path / "images", names, ("upl*",)).write()
    write_report(store)
    said = {r["image_id"]: int(r["label"]) for r in rows_of(store, "report/labels/predictions-upl-star.csv")}
    true = {i: names.index(i.partition("/")[0]) for i in said}
    counts = Counter((true[i], said[i]) for i in said)
    matrix = store.read_json("report/tables/confusion-matrix-upl-star.json")
    assert {(r["true"], r["predicted"]): r["images"] for r in matrix} == counts
    assert all(names[r["true"]] == r["true_classname"] for r in matrix)
    classes = store.read_json("report/tables/classes-upl-star.json")
    assert [r["corpus_images"] for r in classes] == [3] * 30
    assert [r["corpus_ensemble_accuracy"] for r in classes] == [pytest.approx(counts[c, c] / 3) for c in range(30)]
    own = store.read_json("run.json")["scores"]["upl*"]["zero_shot"]["corpus"]["accuracy"]["target"]
    assert np.mean([r["corpus_zero_shot_accuracy"] for r in classes]) == pytest.approx(own)
    mistakes = store.read_json("report/tables/confusion-upl-star.json")
    assert sum(r["images"] for r in mistakes) == sum(n for (a, b), n in counts.items() if a != b)
