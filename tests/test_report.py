"""Reports of made-up runs: rebuilt from storage alone, every name escaped, every number from the tables."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from s3_server import S3Server

from benchmarks.synthetic_run import SyntheticRun, commit_predictions
from upl_ray import schema
from upl_ray.artifacts import Artifact, Store
from upl_ray.config import ConfigError, JobError
from upl_ray.corpus import list_corpus
from upl_ray.datasets.layouts import LAYOUTS
from upl_ray.predict_config import Drift
from upl_ray.predictions import publish
from upl_ray.report import cards, tally, thumbnails
from upl_ray.report.compare import differences, write_comparison
from upl_ray.report.export import as_csv, as_json
from upl_ray.report.figures import figure_style, new_figure, to_svg
from upl_ray.report.page import PAGE, write_report
from upl_ray.report.words import between_words, nearest
from upl_ray.snapshot import keep_snapshot, read_snapshot

ROOT = Path(__file__).parent.parent
NASTY = ("<script>alert(1)<script>", "\"quotes\" & 'more'", "$a_1$ <title>", "日本 \u2028 \u202e rtl", "{{ 7*7 }}")
FILE_NAMES = ("it's.png", 'a "b".png', "<img src=x onerror=alert(2)>.png", "line\u2028.png", "plain.png", "=1+1.png")


def write_images(folder: Path, names: tuple[str, ...], per_class: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for file in per_class:
            noise = rng.integers(0, 40, (30, 50, 3)) + 20 * i
            Image.fromarray(noise.astype(np.uint8)).save(folder / name / file, "PNG")


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run whose every name is an attempt to break the page."""
    folder = tmp_path_factory.mktemp("nasty")
    write_images(folder / "images", NASTY, FILE_NAMES)
    bad = f"{NASTY[1]}/<img src=x onerror=alert(2)>.png"
    run = SyntheticRun(
        folder / "run", folder / "images", NASTY, starved=(4,), rejected={bad: "damaged image: <b>boo</b>"}
    )
    store = run.write()
    write_report(store)
    return store


class Seen(html.parser.HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page_of(store: Store) -> str:
    return store.read(PAGE).decode()


def test_names_from_data_are_text_and_nothing_else(nasty: Store) -> None:
    seen = Seen(page_of(nasty))
    text = "".join(seen.text)
    for name in NASTY:
        assert name in text
    tags = [tag for tag, _ in seen.elements]
    assert tags.count("script") == 2  # the page's own, and its data
    assert not any(a.startswith("on") for _, attributes in seen.elements for a in attributes)
    assert all(a.get("src", "").startswith("data:image/webp;base64,") for t, a in seen.elements if t == "img")
    data = json.loads(next(t for t in seen.text if t.startswith('{"images"')))
    assert data["names"][0] == NASTY[0]


def test_the_page_needs_and_may_load_nothing(nasty: Store) -> None:
    seen = Seen(page_of(nasty))
    policy = next(a["content"] for t, a in seen.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
    addresses = [a.get(k) or "" for t, a in seen.elements for k in ("src", "href", "xlink:href") if a.get(k)]
    assert [x for x in addresses if not x.startswith(("data:", "#", "tables/", "figures/", "labels/"))] == []
    assert not re.search(r"url\((?!#)", page_of(nasty))


def test_every_link_of_the_page_leads_somewhere(nasty: Store) -> None:
    seen = Seen(page_of(nasty))
    ids = [a["id"] for _, a in seen.elements if a.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in seen.elements:
        address = attributes.get("href") or attributes.get("xlink:href") or ""
        if address.startswith("#"):
            assert address[1:] in ids
        elif address and not address.startswith("data:"):
            nasty.read(f"report/{address}")
    for _, attributes in seen.elements:
        for target in (attributes.get("aria-labelledby") or "").split():
            assert target in ids


def test_pictures_say_what_they_are(nasty: Store) -> None:
    seen = Seen(page_of(nasty))
    assert all(a.get("alt") for t, a in seen.elements if t == "img")
    figures = [a for t, a in seen.elements if t == "svg" and a.get("role") == "img"]
    assert len(figures) >= 12
    assert all(a.get("aria-labelledby") for a in figures)


def test_a_rebuild_from_a_copy_of_the_storage_alone_is_the_same_page(nasty: Store, tmp_path: Path) -> None:
    shutil.copytree(nasty.uri, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "report")
    command = [sys.executable, "jobs/report.py", str(tmp_path / "copy")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    images = Path(nasty.read_json("run.json")["config"]["corpus"]["uri"])
    images.rename(images.with_name("away"))  # a rebuild must not look for the corpus
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    finally:
        images.with_name("away").rename(images)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "copy" / PAGE)
    assert (tmp_path / "copy" / PAGE).read_text() == page_of(nasty)


def test_a_report_that_is_there_is_not_made_again(nasty: Store) -> None:
    page = Path(nasty.uri) / PAGE
    before = page.stat().st_mtime_ns
    write_report(nasty)
    assert page.stat().st_mtime_ns == before
    write_report(nasty, again=True)
    assert page.stat().st_mtime_ns > before
    content = page.read_bytes()
    page.unlink()
    write_report(nasty)
    assert page.read_bytes() == content


def test_reports_load_neither_ray_nor_open_clip(nasty: Store) -> None:
    code = (
        "import sys; from upl_ray.artifacts import Store; from upl_ray.report.page import write_report; "
        f"write_report(Store({nasty.uri!r}), again=True); "
        "print(sorted({'ray', 'open_clip'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def rows_of(store: Store, name: str) -> list[dict[str, str]]:
    """Rows of a table, without the mark that keeps spreadsheets from running what begins like a formula."""
    rows = csv.DictReader(io.StringIO(store.read(name).decode(), newline=""))
    return [{k: v[v.startswith(("'=", "'+", "'-", "'@")) :] for k, v in r.items()} for r in rows]


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers() -> None:
    cells = ["=HYPERLINK(1)", "+cmd", "-a", "@x", "\tx", "-1.5", -1.5, "+3", "a=b", "", None]
    written = next(csv.reader(io.StringIO(as_csv(["x"] * len(cells), [cells]).decode().partition("\n")[2], newline="")))
    assert written[:5] == ["'=HYPERLINK(1)", "'+cmd", "'-a", "'@x", "'\tx"]
    assert written[5:] == ["-1.5", "-1.5", "+3", "a=b", "", ""]
    assert json.loads(as_json(["x"], [["=1"]]))[0]["x"] == "=1"


def test_a_class_name_that_looks_like_a_colour_or_an_id_stays_text() -> None:
    name = 'id="x #0072b2 url(#a)'
    with figure_style():
        figure, axes = new_figure()
        axes.plot([0, 1], [0, 1], color="#0072b2", label=name)
        axes.legend()
        svg = to_svg(figure, "f", name, name)
    seen = Seen(svg)
    assert "".join(seen.text).count(name) == 3  # title, description, legend
    assert "var(--series-1)" in svg
    assert not any("#0072b2" in (value or "") for _, attributes in seen.elements for value in attributes.values())


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


def test_figures_are_written_as_png(nasty: Store) -> None:
    names = nasty.names("report/figures")
    assert len(names) >= 12
    for name in names:
        with Image.open(io.BytesIO(nasty.read(f"report/figures/{name}"))) as image:
            assert min(image.size) > 150


def test_accuracies_of_the_page_are_those_of_the_scores(nasty: Store) -> None:
    scores = nasty.read_json("run.json")["scores"]["upl*"]
    shown = {r["what"]: float(r["share"]) for r in nasty.read_json("report/tables/accuracy.json")}
    accuracy = scores["zero_shot"]["corpus"]["accuracy"]
    assert shown["zero-shot, all fused"] == pytest.approx(accuracy["fused"])
    assert shown["zero-shot, beta"] == pytest.approx(accuracy["beta"])
    learned = scores["predictions"]["corpus"]["accuracy"]
    assert shown["UPL*, ensemble"] == pytest.approx(learned["ensemble"])
    assert f"{100 * learned['ensemble']:.1f} %" in page_of(nasty)


def own_confidence(store: Store) -> float:
    """Mean confidence of the target's own zero-shot labels, the last of the three labelers."""
    folder = store.read_json("run.json")["artifacts"]["variants"]["upl*"]["pseudo"]
    rows = [r for c in commits_of(store, folder) for r in c]
    return float(np.mean([r["backbone_confidences"][-1] for r in rows]))


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


def test_sprites_stay_within_their_budget() -> None:
    rng = np.random.default_rng(0)
    tiles: dict[str, list[thumbnails.Tile]] = {
        str(k): [rng.integers(0, 255, (96, 96, 3)).astype(np.uint8) for _ in range(16)] for k in range(6)
    }
    sizes = []
    for budget in (10**9, 60_000, 30_000):
        made = list(thumbnails.within(tiles, budget))
        assert [k for k, *_ in made] == list(tiles)
        assert sum(len(webp) for _, _, webp, _ in made) <= budget
        for _, _, webp, size in made:
            with Image.open(io.BytesIO(webp)) as image:
                assert image.size == (8 * size, 2 * size)
        sizes.append(made[0][3])
    assert sizes[0] == 96
    assert sizes == sorted(sizes, reverse=True)


def test_long_names_cost_pictures_and_not_the_size_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"class {i:02d}" for i in range(20))
    write_images(tmp_path / "images", names, tuple(f"{i}{'x' * 150}.png" for i in range(8)))
    store = SyntheticRun(tmp_path / "run", tmp_path / "images", names, top_k=8).write()
    write_report(store)
    roomy = Seen(page_of(store))
    other = len(re.sub(r"<article.*</article>|<script type=.*?</script>", "", page_of(store), flags=re.S))
    monkeypatch.setattr(cards, "OTHER_BYTES", other)  # of a small page the figures are most
    for limit in (other + 120_000, other + 80_000):
        monkeypatch.setattr(cards, "PAGE_BYTES", limit)
        write_report(store, again=True)
        assert len(page_of(store).encode()) < limit
    seen = Seen(page_of(store))
    assert len([t for t, _ in seen.elements if t == "article"]) == 40
    pixels = [sum(int(a["width"] or 0) for t, a in s.elements if t == "img") for s in (roomy, seen)]
    assert pixels[1] < pixels[0]
    monkeypatch.setattr(cards, "MAX_CARDS", 30)
    write_report(store, again=True)
    assert page_of(store).count("<article") == 30
    assert "The 10 cards that need a look least are left out" in page_of(store)
    assert len(store.read_json("report/tables/classes-upl.json")) == 20


def test_a_tile_shows_the_centre_of_its_image() -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 20:40] = (200, 100, 50)
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    tile = thumbnails.make_tile(out.getvalue(), 20)
    assert not isinstance(tile, str)
    np.testing.assert_allclose(tile[:, 3:-3], np.broadcast_to([200, 100, 50], (20, 14, 3)), atol=3)


def test_nearest_words_equal_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    ctx, table = torch.randn(3, 4, 8, generator=generator), torch.randn(50, 8, generator=generator)
    tokens, distances = nearest(ctx, table)
    for s in range(3):
        for m in range(4):
            each = [math_distance(ctx[s, m], row) for row in table]
            assert tokens[s, m] == int(np.argmin(each))
            assert float(distances[s, m]) == pytest.approx(min(each), rel=1e-4)
    closest = [min(math_distance(a, b) for j, b in enumerate(table) if j != i) for i, a in enumerate(table)]
    assert between_words(table) == pytest.approx(sorted(closest)[(len(closest) - 1) // 2], rel=1e-3)


def math_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5)


def test_runs_are_compared_image_by_image(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a", "b", "<b>c"), tuple(f"{i}.png" for i in range(12)))
    made = [
        SyntheticRun(tmp_path / f"run{i}", tmp_path / "images", ("a", "b", "<b>c"), ("upl",), top_k=4 + i, seed=i)
        for i in range(2)
    ]
    stores = [m.write() for m in made]
    address = write_comparison(stores)
    page = Path(address).read_text()
    tables = [{r["image_id"]: r["label"] for r in _predicted(s)} for s in stores]
    ids = tables[0].keys() & tables[1].keys()
    same = sum(tables[0][i] == tables[1][i] for i in ids) / len(ids)
    text = " ".join("".join(Seen(page).text).split())
    assert f"On {len(ids)} images of both (corpus) they give the same label to {100 * same:.1f} %" in text
    right = [sum(("a", "b", "<b>c")[t[i]] == i.split("/")[0] for i in ids) for t in tables]
    assert f"{100 * (right[1] - right[0]) / len(ids):+.1f} points" in text
    assert "label.top_k" in text


def _predicted(store: Store) -> list[dict[str, Any]]:
    return [r for rows in commits_of(store, Path(store.read_json("run.json")["predictions"]).name) for r in rows]


def commits_of(store: Store, folder: str) -> list[list[dict[str, Any]]]:
    artifact = Artifact(store, *folder.split("-"))
    return [artifact.read_shard(c).to_pylist() for c in sorted(artifact.committed())]


def test_images_of_the_same_name_are_compared_only_in_the_same_version(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ("a", "b"), tuple(f"{i}.png" for i in range(12)))
    stores = []
    for i in range(2):
        stores.append(SyntheticRun(tmp_path / f"run{i}", tmp_path / "images", ("a", "b"), ("upl",), top_k=4).write())
        for j in range(5):  # retouched after the first run
            Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a" / f"{j}.png")
    text = " ".join("".join(Seen(Path(write_comparison(stores)).read_text()).text).split())
    assert "5 images of the same name are other files in the two runs" in text
    assert "On 19 images of both (corpus) they give the same label to 100.0 %" in text


def test_only_fields_that_differ_are_listed() -> None:
    configs = {"A": {"x": 1, "s": {"y": 2, "z": [1]}}, "B": {"x": 1, "s": {"y": 3, "z": [1]}, "new": True}}
    assert differences(configs) == [["s.y", "2", "3"], ["new", "–", "True"]]


def test_a_report_in_object_storage_is_the_same_report(nasty: Store, s3: S3Server) -> None:
    bucket = s3.create_bucket()
    s3.upload(Path(nasty.uri), bucket, "run")
    remote = Store(f"s3://{bucket}/run")
    before = len(s3.requests(bucket))
    write_report(remote, again=True)
    assert remote.read(PAGE) == nasty.read(PAGE)
    for file in ("labels/predictions-upl.csv", "labels/fiftyone-upl/labels.json", "tables/rejected.csv"):
        assert remote.read(f"report/{file}") == nasty.read(f"report/{file}")
    kinds = {r.kind for r in s3.requests(bucket, before)}
    assert kinds <= {"GET", "HEAD", "PUT", "LIST"}


def test_a_folder_without_a_run_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No finished run"):
        write_report(Store(str(tmp_path)))
    (tmp_path / "run.json").write_text('{"status": "done"}')
    with pytest.raises(ConfigError, match="older version; run the job again"):
        write_report(Store(str(tmp_path)))
