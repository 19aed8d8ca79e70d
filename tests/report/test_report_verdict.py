"""Verdicts without labels on the page, and what it says of refined labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import MakeRun, Seen, commits_of, page_of, reported, rows_of, table_of, text_of, write_images

from benchmarks.synthetic_run import SyntheticRun
from upl_ray.report.findings import judgements
from upl_ray.report.finished import FinishedRun
from upl_ray.report.page import page_fingerprint, write_report
from upl_ray.storage.store import Store
from upl_ray.upl.agreement import estimated_accuracies
from upl_ray.upl.verdict import Votes, verdict

NAMES = ("a", "b", "c")
WORSE = verdict({"alpha": Votes(200, 80, -30.0, 10, 50), "beta": Votes(200, 80, -20.0, 15, 45)})
BETTER = verdict({"alpha": Votes(200, 80, 30.0, 50, 10)})
UNSURE = verdict({"alpha": Votes(200, 80, 2.0, 41, 39)})
UNCHANGED = verdict({"alpha": Votes(200)})
NOBODY = verdict({})


def judged(found: dict[str, Any], truth: float | None = None) -> dict[str, Any]:
    return {**found, "truth": truth}


def classes_of(page: str, name: str) -> int:
    return sum(name in (a.get("class") or "").split() for _, a in Seen(page).elements)


def run_of(folder: Path, variant: str, backbones: str, found: dict[str, Any]) -> FinishedRun:
    """As much of a run of some backbones, of one letter each, as verdicts are read from."""
    steps = ("pseudo_labels", "selection", "views", "members", "classifier", "predictions", "scores")
    labelers = ["t"] if variant == "upl" else list(backbones)
    summary = {
        "target": "t",
        "config": {"variants": [variant]},
        "scores": {variant: {"labelers": labelers}},
        "folders": {
            "features": {name: f"features-{name}" for name in backbones},
            "variants": {variant: {s: f"{s}-0123456789ab" for s in steps}},
        },
        "verdict": {variant: found},
    }
    return FinishedRun(Store(str(folder)), summary)


def test_worse_is_loud_and_names_the_better_choice(make_run: MakeRun) -> None:
    found = {"upl": {"labels": None, "classifier": judged(WORSE, -0.031)}}
    page = page_of(reported(make_run(NAMES, verdict=found)))
    assert classes_of(page, "worse") == 1
    first = page[page.index('<div class="verdict">') :]
    assert first.index("Worse than the template") < first.index("UPL classifies")  # before all that sounds well
    assert (
        "Worse than the template: UPL, classifier. The template of target is the better choice: classify with it. "
        "The referees' estimate without labels, in points: "
        f"-12.5 ± {100 * WORSE['error']:.1f} (alpha -15.0, beta -10.0). "
        "True labels say -3.1."
    ) in text_of(page)


def test_better_is_said_quietly_beside_the_truth(make_run: MakeRun) -> None:
    found = {"upl": {"labels": None, "classifier": judged(BETTER)}}
    page = page_of(reported(make_run(NAMES, verdict=found, labels="none")))
    assert classes_of(page, "worse") == 0
    assert f"UPL, classifierbetter+15.0 ± {100 * BETTER['error']:.1f} (alpha +15.0)" in text_of(page)
    assert "true gain" not in text_of(page)  # nobody knows it


def test_true_labels_outvote_the_referees(tmp_path: Path) -> None:
    for found, truth in ((WORSE, 0.02), (BETTER, -0.02)):
        (told,) = judgements(run_of(tmp_path, "upl", "abt", {"labels": None, "classifier": judged(found, truth)}))
        assert told.advice == "True labels say the opposite: trust them."
        assert not told.loud


@pytest.mark.parametrize(
    ("variant", "what", "found", "backbones", "advice"),
    [
        ("upl*", "classifier", NOBODY, "abt", "one that labels nothing would tell: label.referee: a or b."),
        ("upl*", "classifier", NOBODY, "t", "A second backbone could judge"),
        ("upl", "classifier", UNSURE, "abt", "more images, or a further backbone as referee"),
        ("upl", "classifier", UNCHANGED, "abt", "no label differs"),
        ("upl*", "labels", UNCHANGED, "at", "A further backbone would tell"),
        ("refined", "labels", WORSE, "abt", "The template of t is the better choice: the variant upl learns from"),
    ],
)
def test_advice_fits_the_reason(
    tmp_path: Path, variant: str, what: str, found: dict[str, Any], backbones: str, advice: str
) -> None:
    found_of = {"labels": None, "classifier": judged(BETTER), what: judged(found)}
    run = run_of(tmp_path, variant, backbones, found_of)
    told = [j for j in judgements(run) if j.subject.endswith(what)]
    assert [j.answer for j in told] == [found["answer"]]
    assert advice in told[0].advice


def test_a_run_of_an_earlier_version_has_no_verdict_and_its_report_says_nothing_of_it(make_run: MakeRun) -> None:
    store = make_run(NAMES).write()
    summary = store.read_json("run.json")
    del summary["verdict"], summary["absent_classes"]
    del summary["scores"]["upl"]["predictions"]["corpus"]["accuracy_even"]
    store.write_json("run.json", summary)
    write_report(store)
    text = text_of(page_of(store))
    assert "UPL classifies" in text
    assert "Judged without labels" not in text
    assert "untested" not in text


def test_another_verdict_is_another_page(make_run: MakeRun) -> None:
    run = FinishedRun(store := make_run(NAMES).write(), store.read_json("run.json"))
    before = page_fingerprint(run)
    run.summary["verdict"] = {"upl": {"labels": None, "classifier": judged(WORSE)}}
    assert page_fingerprint(run) != before


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run with refined labels, made once."""
    folder = tmp_path_factory.mktemp("refined")
    write_images(folder / "images", NAMES, tuple(f"{i}.png" for i in range(40)))
    variants = ("refined", "upl*")
    return reported(
        SyntheticRun(folder / "run", folder / "images", NAMES, variants, top_k=5, sample=0.9, absent=("b",))
    )


def test_classes_without_images_are_named(refined: Store) -> None:
    said = "No image looks like these classes; what is said about them is untested: b."
    assert said in text_of(page_of(refined))


def test_refined_labels_come_from_a_sample_and_from_no_top_k(refined: Store) -> None:
    text = text_of(page_of(refined))
    counts = refined.read_json("run.json")["scores"]["refined"]["selection"]["images_per_class"]
    mean = f"{np.mean(counts):.0f}"
    assert "UPL*: the 5 most confident images of each class" in text
    assert f"Refined: a uniform sample of the corpus, {mean} images a class on average" in text
    assert f"soft ones of a uniform sample, {mean} a class on average" in text  # the key number
    cards = [a for t, a in Seen(page_of(refined)).elements if t == "img" and "labeled" in (a.get("alt") or "")]
    assert sorted(a["alt"] for a in cards)[:3] == [f"16 sampled images labeled {name}" for name in NAMES]
    caption = text[text.index("Refined: balance of the selection") :]
    caption = caption[: caption.index("The numbers")]
    assert f"the sample {max(counts)} and {min(counts)}" in caption
    assert "top" not in caption
    assert [r["uniform sample"] for r in table_of(refined, "imbalance-refined")] == counts
    assert "top 5" in table_of(refined, "imbalance-upl-star")[0]


def test_thumbnails_of_a_sample_are_not_its_most_confident_images(refined: Store) -> None:
    rows = [r for r in table_of(refined, "selected-refined") if r["classname"] == "a"]
    assert [r["confidence"] for r in rows] == sorted((r["confidence"] for r in rows), reverse=True)
    data = json.loads(next(t for t in Seen(page_of(refined)).text if t.startswith('{"corpus"')))
    confidences = [confidence for _, confidence, *_ in data["images"]["refined"]["0"]]
    assert len(confidences) == 16 < len(rows)
    assert min(confidences) < rows[15]["confidence"]


def test_accuracies_of_refined_labels_and_of_both_mixtures_are_those_of_the_scores(refined: Store) -> None:
    scores = refined.read_json("run.json")["scores"]["refined"]
    shown = {r["what"]: r["share"] for r in table_of(refined, "accuracy")}
    assert shown["Refined labels"] == pytest.approx(scores["zero_shot"]["corpus"]["accuracy"]["fused"])
    learned = scores["predictions"]["corpus"]
    assert shown["Refined, ensemble"] == pytest.approx(learned["accuracy"]["ensemble"])
    assert shown["Refined, classes even"] == pytest.approx(learned["accuracy_even"])
    assert "UPL*, classes even" not in shown
    other = refined.read_json("run.json")["scores"]["upl*"]["zero_shot"]["corpus"]["accuracy"]["fused"]
    assert shown["zero-shot, all fused"] == pytest.approx(other)  # though the refined variant comes first
    assert f"it classifies {100 * learned['accuracy_even']:.1f} % right" in text_of(page_of(refined))


def test_exported_labels_hold_those_of_even_classes_too(refined: Store) -> None:
    folder = refined.read_json("run.json")["folders"]["variants"]["refined"]["predictions"]
    even = {r["image_id"]: str(r["even_label"]) for rows in commits_of(refined, folder) for r in rows}
    exported = rows_of(refined, "report/labels/predictions-refined.csv")
    assert {r["image_id"]: r["even_label"] for r in exported} == even
    assert any(r["even_label"] != r["label"] for r in exported)
    samples = refined.read_json("report/labels/fiftyone-refined/labels.json")["labels"].values()
    about = [s["attributes"] for s in samples]
    assert {a["image_id"]: str(a["even_label"]) for a in about} == even
    assert "even_label" not in rows_of(refined, "report/labels/predictions-upl-star.csv")[0]


def test_accuracies_of_backbones_are_estimated_from_their_agreement(refined: Store) -> None:
    summary = refined.read_json("run.json")
    rows = commits_of(refined, summary["folders"]["variants"]["upl*"]["pseudo_labels"])
    own = np.array([r["backbone_labels"] for of in rows for r in of])
    agreement = np.array([[(own[:, i] == own[:, j]).mean() for j in range(3)] for i in range(3)])
    table = table_of(refined, "estimated-accuracy")
    assert [r["estimated"] for r in table] == pytest.approx(estimated_accuracies(agreement, 3), abs=1e-6)
    true = summary["scores"]["upl*"]["zero_shot"]["corpus"]["accuracy"]
    assert {r["backbone"]: r["true"] for r in table} == pytest.approx({n: true[n] for n in ("alpha", "beta", "target")})
    assert "all of them look better than they are" in text_of(page_of(refined))


def test_one_backbone_agrees_with_nobody(make_run: MakeRun) -> None:
    assert "without labels" not in text_of(page_of(reported(make_run(NAMES))))
