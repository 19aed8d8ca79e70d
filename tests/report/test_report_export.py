"""Tables, exported labels and TensorBoard files of reports: every number from the storage's own tables."""

from __future__ import annotations

import csv
import io
import struct
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import MakeRun, Seen, page_of, reported, rows_of, table_of, text_of, write_images
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from benchmarks.synthetic_run import SyntheticRun
from upl_ray.report.export import EVENTS_FILE, write_table
from upl_ray.report.page import write_report
from upl_ray.storage.step import open_step
from upl_ray.storage.store import Store
from upl_ray.upl import tally


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers(tmp_path: Path) -> None:
    cells = ["=HYPERLINK(1)", "+cmd", "-a", "@x", "\tx", "-1.5", -1.5, "+3", "a=b", "", None]
    store, header = Store(str(tmp_path)), [str(i) for i in range(len(cells))]
    write_table(store, "report", "cells", header, [cells])
    _, written = csv.reader(io.StringIO(store.read("report/tables/cells.csv").decode(), newline=""))
    assert written[:5] == ["'=HYPERLINK(1)", "'+cmd", "'-a", "'@x", "'\tx"]
    assert written[5:] == ["-1.5", "-1.5", "+3", "a=b", "", ""]
    assert list(table_of(store, "cells")[0].values()) == cells


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
        as_json: list[dict[str, Any]] = table_of(nasty, name)
        as_csv = rows_of(nasty, f"report/tables/{name}.csv")
        assert [[("" if v is None else str(v)) for v in r.values()] for r in as_json] == [
            list(r.values()) for r in as_csv
        ]
    assert rows_of(nasty, "report/tables/rejected.csv")[0]["reason"] == "damaged image: <b>boo</b>"


def test_changed_images_are_those_on_which_zero_shot_and_the_ensemble_differ(nasty: Store) -> None:
    predicted = {r["image_id"]: r["label"] for r in rows_of(nasty, "report/labels/predictions-upl.csv")}
    zero_shot = {r["image_id"]: r["pseudo_label"] for r in rows_of(nasty, "report/labels/pseudo_labels-upl.csv")}
    changed = table_of(nasty, "changed-upl")
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
    shown = {r["what"]: float(r["share"]) for r in table_of(nasty, "accuracy")}
    accuracy = scores["zero_shot"]["corpus"]["accuracy"]
    assert shown["zero-shot, all fused"] == pytest.approx(accuracy["fused"])
    assert shown["zero-shot, beta"] == pytest.approx(accuracy["beta"])
    learned = scores["predictions"]["corpus"]["accuracy"]
    assert shown["UPL*, ensemble"] == pytest.approx(learned["ensemble"])
    assert f"{100 * learned['ensemble']:.1f} %" in page_of(nasty)


def test_of_a_few_labeled_images_all_vote_and_confidence_is_of_these_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "VOTE_IMAGES", 4)
    names, files = ("a", "b", "c"), tuple(f"{i}.png" for i in range(30))
    write_images(tmp_path / "images", names, files)
    few = {"a/3.png", "b/5.png", "c/7.png"}
    lines = [f"{name}/{file},{name if f'{name}/{file}' in few else ''}" for name in names for file in files]
    (tmp_path / "images" / "some.csv").write_text("\n".join(["file,label", *lines]))
    images = tmp_path / "images" / "some.csv"
    store = reported(SyntheticRun(tmp_path / "run", images, names, ("upl",), labels="column"))
    assert "on 3 images: mean and range" in text_of(page_of(store))
    pseudo = {r["image_id"]: r for r in rows_of(store, "report/labels/pseudo_labels-upl.csv")}
    for row in table_of(store, "confidence-upl"):
        mine = [pseudo[i] for i in few if pseudo[i]["classname"] == row["class"]]
        assert row["labeled"] == len(mine)
        if mine:
            assert row["confidence"] == pytest.approx(np.mean([float(r["confidence"]) for r in mine]), abs=1e-5)
        else:
            assert row["confidence"] is None


def test_no_figure_is_drawn_of_votes_that_nobody_cast(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "VOTE_IMAGES", 0)  # chance may leave none of a few images
    assert "Gain from more members" not in page_of(reported(make_run()))


def test_every_class_has_its_accuracies_and_every_confusion_is_written_for_many_classes(make_run: MakeRun) -> None:
    names = tuple(f"class {i:02d}" for i in range(30))  # more than a figure shows
    store = reported(make_run(names, ("1.png", "2.png", "3.png"), variants=("upl*",)))
    predicted = {r["image_id"]: int(r["label"]) for r in rows_of(store, "report/labels/predictions-upl-star.csv")}
    true = {i: names.index(i.partition("/")[0]) for i in predicted}
    counts = Counter((true[i], predicted[i]) for i in predicted)
    matrix = table_of(store, "confusion-matrix-upl-star")
    assert {(r["true"], r["predicted"]): r["images"] for r in matrix} == counts
    assert all(names[r["true"]] == r["true_classname"] for r in matrix)
    classes = table_of(store, "classes-upl-star")
    assert [r["corpus_images"] for r in classes] == [3] * 30
    assert [r["corpus_ensemble_accuracy"] for r in classes] == [pytest.approx(counts[c, c] / 3) for c in range(30)]
    own = store.read_json("run.json")["scores"]["upl*"]["zero_shot"]["corpus"]["accuracy"]["target"]
    assert np.mean([r["corpus_zero_shot_accuracy"] for r in classes]) == pytest.approx(own)
    mistakes = table_of(store, "confusion-upl-star")
    assert sum(r["images"] for r in mistakes) == sum(n for (a, b), n in counts.items() if a != b)


def events_of(store: Store, folder: str) -> list[Event]:
    """Events of the only file of a folder for TensorBoard, which is called as TensorBoard expects."""
    files = store.names(f"report/tensorboard/{folder}")
    assert files == [EVENTS_FILE]
    assert "tfevents" in EVENTS_FILE
    data, events = store.read(f"report/tensorboard/{folder}/{EVENTS_FILE}"), []
    while data:  # of each record: length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_a_member_has_its_curves_at_the_end_of_its_training(nasty: Store) -> None:
    members = open_step(nasty, nasty.read_json("run.json")["folders"]["variants"]["upl"]["members"])
    history = members.read_table("history.parquet").to_pylist()
    first, *events = events_of(nasty, "upl/member-03")
    assert first.file_version == "brain.Event:2"
    written = [(e.step, v.tag, pytest.approx(v.simple_value)) for e in events for v in e.summary.value]
    rows = [r for r in history if r["member"] == 3]
    assert written == [(r["epoch"], tag, r[tag]) for r in rows for tag in ("loss", "lr")]
    assert {e.wall_time for e in events} == {ended(members.manifest())}


def ended(manifest: dict[str, Any]) -> float:
    return datetime.fromisoformat(manifest["provenance"]["time"]).timestamp()


def test_a_variant_has_every_parameter_and_its_final_figures(nasty: Store) -> None:
    summary = nasty.read_json("run.json")
    for variant, slug in (("upl*", "upl-star"), ("upl", "upl")):
        _, *about = events_of(nasty, slug)
        plugins = [e.summary.value[0].metadata.plugin_data for e in about[:3]]
        assert [p.plugin_name for p in plugins] == ["hparams"] * 3
        parameters = HParamsPluginData.FromString(plugins[1].content).session_start_info.hparams
        assert parameters["run"].string_value == summary["storage"]
        assert parameters["variant"].string_value == variant
        assert parameters["train.lr"].number_value == summary["config"]["train"]["lr"]
        assert parameters["backbones"].string_value == str(summary["config"]["backbones"])
        metrics = HParamsPluginData.FromString(plugins[0].content).experiment.metric_infos
        values = {v.tag: v.simple_value for e in about[3:] for v in e.summary.value}
        assert [m.name.tag for m in metrics] == list(values)  # TensorBoard finds a figure by its tag
        scores = summary["scores"][variant]
        assert values["accuracy/corpus"] == pytest.approx(scores["predictions"]["corpus"]["accuracy"]["ensemble"])
        own = scores["zero_shot"]["corpus"]["accuracy"][summary["target"]]
        assert values["zero_shot_accuracy/corpus"] == pytest.approx(own)


def test_a_later_training_replaces_the_curves(make_run: MakeRun) -> None:
    store = reported(make_run())
    members = open_step(store, store.read_json("run.json")["folders"]["variants"]["upl"]["members"])
    facts = members.manifest()
    later = facts["provenance"] | {"time": "2030-01-01T00:00:00+00:00"}
    members.write_json("manifest.json", {**facts, "provenance": later})
    write_report(store, again=True)
    for folder in ("upl", "upl/member-00"):
        assert {e.wall_time for e in events_of(store, folder)[1:]} == {1893456000}
