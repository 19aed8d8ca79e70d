"""Letters among the digits: other words compete, `known` sets the letters apart, and the threshold keeps them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from worlds import TEMPLATE, committed_rows, digit_world, folders, job_config

from upl_ray.demo.digits import CLASSNAMES
from upl_ray.demo.letters import write_letters
from upl_ray.errors import JobError
from upl_ray.pipeline.main import run
from upl_ray.report.page import write_report
from upl_ray.storage.store import Store
from upl_ray.upl.classifier import load_classifier
from upl_ray.upl.zero_shot import fill_template

pytestmark = pytest.mark.slow  # whole runs, of minutes

SHORT: dict[str, Any] = {"train": {"members": 2, "epochs": 2}, "variants": ["upl*", "refined"], "views": {"count": 2}}
WORDS = tuple("abcdefghijklmnopqrstuvwxyz")
THRESHOLD = 0.3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = digit_world(tmp_path_factory.mktemp("digits"))
    write_letters(root / "letters")
    return root


def config(world: Path, storage: Path | str, **label: Any) -> Any:
    corpus = {"uri": [str(world / "corpus"), str(world / "letters")], "labels": "folders"}
    given = {"negatives": list(WORDS), **label}
    return job_config(world, storage, **SHORT, corpus=corpus, label=given, refine={"train_per_class": 8})


@pytest.fixture(scope="module")
def before(cluster: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(config(world, tmp_path_factory.mktemp("storage")))


@pytest.fixture(scope="module")
def after(before: dict[str, Any], world: Path) -> dict[str, Any]:
    return run(config(world, before["storage"], min_known=THRESHOLD))


def rows(summary: dict[str, Any], step: str, variant: str = "upl*") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = committed_rows(
        summary["storage"], summary["folders"]["variants"][variant][step]
    ).to_pylist()
    return found


def selected(summary: dict[str, Any], variant: str) -> set[str]:
    folder = summary["folders"]["variants"][variant]["selection"]
    return set(Store(summary["storage"]).read_table(f"{folder}/selection.parquet")["image_id"].to_pylist())


def of_corpus(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Pseudo-labels of the corpus: ids of several folders are addresses, those of the scored folder are names."""
    return [r for r in rows(summary, "pseudo_labels") if r["image_id"].startswith("/")]


def is_letter(image_id: str) -> bool:
    return "/letters/" in image_id


def test_known_sets_letters_apart_and_confidence_does_not(before: dict[str, Any]) -> None:
    labels = of_corpus(before)
    true = [not is_letter(r["image_id"]) for r in labels]
    known, confidence = (roc_auc_score(true, [r[name] for r in labels]) for name in ("known", "confidence"))
    assert true.count(False) == 390
    assert known > 0.8
    assert known > confidence + 0.15


def test_known_is_the_classes_share_of_the_fused_probability(before: dict[str, Any], world: Path) -> None:
    """The oracle encodes images and prompts by itself and averages one softmax a backbone."""
    from upl_ray.config.settings import Backbone
    from upl_ray.upl.backbones import resolve_backbone
    from upl_ray.upl.clip_model import ClipModel
    from upl_ray.upl.images import center_crop

    found = {r["image_id"]: r for r in rows(before, "pseudo_labels")}
    ids = [i for i in sorted(found) if is_letter(i)][:5]
    shares = []
    for name in ("demo:vit_a", "demo:vit_b", "demo:rn"):
        clip = ClipModel(resolve_backbone(Backbone(model=name)))
        texts = clip.encode_texts(fill_template(TEMPLATE, (*CLASSNAMES, *WORDS))).numpy()
        free = (texts[10:] @ texts[:10].T).max(axis=1) < 0.93
        crops = np.stack([center_crop(Image.open(i), clip.spec.geometry) for i in ids])
        logits = (
            clip.logit_scale * clip.encode_crops(crops).astype(np.float64) @ np.vstack([texts[:10], texts[10:][free]]).T
        )
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares.append(p[:, :10].sum(axis=1) / p.sum(axis=1))
    assert [found[i]["known"] for i in ids] == pytest.approx(np.mean(shares, axis=0).tolist(), abs=2e-3)


def test_predictions_say_it_by_the_target_as_the_classifier_does(before: dict[str, Any]) -> None:
    found = {r["image_id"]: r["known"] for r in rows(before, "predictions")}
    some = [i for i in sorted(found) if is_letter(i)][:8]
    classifier = load_classifier(before["classifier"])
    shares = classifier.known([Image.open(i) for i in some])
    assert [found[i] for i in some] == pytest.approx(shares.tolist(), abs=1e-3)


def test_less_known_images_are_selected_for_no_class_and_counted(before: dict[str, Any], after: dict[str, Any]) -> None:
    below = {r["image_id"] for r in rows(before, "pseudo_labels") if r["known"] < THRESHOLD}
    for variant in ("upl*", "refined"):
        assert selected(before, variant) & below
        assert selected(after, variant)
        assert not selected(after, variant) & below
    corpus = {r["image_id"] for r in of_corpus(before)}
    known = after["scores"]["upl*"]["known"]["corpus"]
    assert (known["below"], known["images"], known["min_known"]) == (len(below & corpus), len(corpus), THRESHOLD)
    assert before["scores"]["upl*"]["known"]["corpus"]["below"] == 0
    others = sorted(
        (r for r in of_corpus(before) if r["image_id"] not in below), key=lambda r: (-r["confidence"], r["image_id"])
    )
    top = {r["image_id"] for c in range(10) for r in [x for x in others if x["pseudo_label"] == c][:4]}
    assert selected(after, "upl*") == top


def test_nothing_is_labeled_again_for_a_threshold(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert len(folders(after["storage"], "text")) == 6  # class names and words of three backbones
    same = [s["folders"]["variants"]["upl*"]["pseudo_labels"] for s in (before, after)]
    assert same[0] == same[1]
    assert before["folders"]["features"] == after["folders"]["features"]


def test_the_report_shows_the_least_known_images(after: dict[str, Any]) -> None:
    store = Store(after["storage"])
    write_report(store, again=True)
    page = store.read("report/index.html").decode()
    assert "least known images" in page
    assert f"images below label.min_known, {THRESHOLD}, were selected for no class" in page
    header, *lines = store.read("report/labels/predictions-upl-star.csv").decode().splitlines()
    assert header.split(",")[5] == "known"
    assert all(0 <= float(line.split(",")[5]) <= 1 for line in lines)


def test_a_threshold_above_all_images_is_said(before: dict[str, Any], world: Path) -> None:
    with pytest.raises(JobError, match=r"none has label.min_known = 1.0 or more; lower it"):
        run(config(world, before["storage"], min_known=1.0))


def test_without_words_there_is_no_such_value(before: dict[str, Any], world: Path, tmp_path: Path) -> None:
    found = run(job_config(world, tmp_path, **{**SHORT, "variants": ["upl*"]}, label={"negatives": []}))
    assert {r["known"] for step in ("pseudo_labels", "predictions") for r in rows(found, step)} == {None}
    assert found["scores"]["upl*"]["known"] == {"corpus": None, "scored": None}
    assert "least known" not in Store(found["storage"]).read("report/index.html").decode()
