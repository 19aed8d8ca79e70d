"""A person's corrections, obeyed by a whole job: only selections and what follows them are made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chromium import needs_chromium, opened
from worlds import committed_rows, digit_world, folders, job_config

from upl_ray.config.settings import Config
from upl_ray.corpus.corrections import NONE
from upl_ray.demo.digits import CLASSNAMES
from upl_ray.pipeline.inputs import prepare
from upl_ray.pipeline.main import run
from upl_ray.pipeline.plan import plan_run
from upl_ray.pipeline.pseudo_labels import label_each
from upl_ray.storage.store import Store
from upl_ray.upl.fusion import fuse
from upl_ray.upl.refine import refine

pytestmark = pytest.mark.slow  # whole runs, of minutes

SHORT: dict[str, Any] = {"train": {"members": 2, "epochs": 2}, "variants": ["upl*", "refined"]}
REFINE = {"train_per_class": 4}


def selection(summary: dict[str, Any], variant: str) -> dict[str, dict[str, Any]]:
    folder = summary["folders"]["variants"][variant]["selection"]
    rows = Store(summary["storage"]).read_table(f"{folder}/selection.parquet").to_pylist()
    return {r["image_id"]: r for r in rows}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_world(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def before(cluster: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(job_config(world, tmp_path_factory.mktemp("storage"), **SHORT, refine=REFINE))


@pytest.fixture(scope="module")
def corrected(before: dict[str, Any], world: Path) -> dict[str, int]:
    """Six selected zeros are said to be ones, more than are selected of a class; two others none; one not selected."""
    chosen = selection(before, "upl*")
    zeros = [i for i, r in chosen.items() if r["pseudo_label"] in (0, 2)][:6]
    others = [i for i, r in chosen.items() if r["pseudo_label"] == 5][:2]
    free = next(
        f"{p.parent.name}/{p.name}"
        for p in sorted((world / "corpus" / "seven").iterdir())
        if f"seven/{p.name}" not in chosen
    )
    return dict.fromkeys(zeros, 1) | dict.fromkeys(others, NONE) | {free: 7}


@pytest.fixture(scope="module")
def after(before: dict[str, Any], corrected: dict[str, int], world: Path) -> dict[str, Any]:
    file = Path(before["storage"]).parent / "corrections.csv"
    lines = [f"{i},{'' if c == NONE else CLASSNAMES[c]}" for i, c in corrected.items()]
    file.write_text("\n".join(["image_id,label", *lines, "one/empty.png,one"]) + "\n")
    return run(job_config(world, before["storage"], **SHORT, refine=REFINE, label={"corrections": str(file)}))


def test_no_feature_and_no_fused_label_is_made_again(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert after["folders"]["features"] == before["folders"]["features"]
    for kind, count in {"features": 3, "text": 6, "corrections": 1}.items():
        assert len(folders(after["storage"], kind)) == count
    plain = [s["folders"]["variants"]["upl*"] for s in (before, after)]
    assert plain[0]["pseudo_labels"] == plain[1]["pseudo_labels"]
    assert all(plain[0][name] != plain[1][name] for name in ("selection", "views", "classifier", "predictions"))
    assert "features" not in after["steps"] or after["steps"]["features"] == before["steps"]["features"]


def test_corrected_images_are_selected_for_their_class_alone(
    before: dict[str, Any], after: dict[str, Any], corrected: dict[str, int]
) -> None:
    chosen = selection(after, "upl*")
    for image_id, label in corrected.items():
        assert (image_id in chosen) == (label != NONE)
        if label != NONE:
            assert (chosen[image_id]["pseudo_label"], chosen[image_id]["confidence"]) == (label, 1.0)
    assert "one/empty.png" not in chosen  # it cannot be read
    counts = np.bincount([r["pseudo_label"] for r in chosen.values()], minlength=10)
    assert counts[1] == 6  # all that were pinned, though top_k is 4
    assert all(counts[c] == 4 for c in (0, 2, 5, 7))  # others have moved up
    rows = [r for r in chosen.values() if r["image_id"] not in corrected]
    old = committed_rows(after["storage"], after["folders"]["variants"]["upl*"]["pseudo_labels"]).to_pylist()
    label = {r["image_id"]: r["pseudo_label"] for r in old}
    assert all(r["pseudo_label"] == label[r["image_id"]] for r in rows)


def test_refined_labels_take_corrections_as_they_are(after: dict[str, Any], corrected: dict[str, int]) -> None:
    """The oracle is the plain function on the images that show a class, with known rows fixed."""
    inputs = prepare(Config.model_validate(after["config"]))
    labelers = plan_run(inputs).labelers["refined"]
    parts = [
        label_each(shard, labelers, lambda ids: [i for i, x in enumerate(ids) if corrected.get(x) != NONE])
        for shard in inputs.corpus.shards
    ]
    ids = [i for of, _, _ in parts for i in of]
    features = [torch.from_numpy(np.concatenate([f[b] for _, f, _ in parts])) for b in range(len(labelers))]
    fused = torch.from_numpy(np.concatenate([fuse([of] * len(own), own)[1] for of, _, own in parts]))
    fixed = torch.tensor([i in corrected for i in ids])
    for row in torch.nonzero(fixed)[:, 0].tolist():
        fused[row] = torch.nn.functional.one_hot(torch.tensor(corrected[ids[row]]), 10)
    expected = refine(features, fused, fixed=fixed)
    manifest = Store(after["storage"]).read_json(
        f"{after['folders']['variants']['refined']['refinement']}/manifest.json"
    )
    np.testing.assert_allclose(manifest["class_shares"], expected.class_shares, atol=1e-6)
    z = dict(zip(ids, expected.probabilities.numpy(), strict=True))
    views = committed_rows(after["storage"], after["folders"]["variants"]["refined"]["views"])
    targets = dict(zip(views["image_id"].to_pylist(), views["targets"].to_pylist(), strict=True))
    assert targets.keys() >= {i for i, c in corrected.items() if c != NONE}
    assert not targets.keys() & {i for i, c in corrected.items() if c == NONE}
    np.testing.assert_allclose(np.array(list(targets.values())), np.array([z[i] for i in targets]), atol=1e-4)
    chosen = selection(after, "refined")
    assert {i: chosen[i]["pseudo_label"] for i, c in corrected.items() if c != NONE} == {
        i: c for i, c in corrected.items() if c != NONE
    }


def test_corrected_images_are_never_scored(
    before: dict[str, Any], after: dict[str, Any], corrected: dict[str, int]
) -> None:
    for variant in ("upl*", "refined"):
        old, new = (s["scores"][variant] for s in (before, after))
        assert new["predictions"]["corpus"]["labeled"] == old["predictions"]["corpus"]["labeled"] - len(corrected)
        assert new["zero_shot"]["corpus"]["labeled"] == old["zero_shot"]["corpus"]["labeled"] - len(corrected)
        assert new["predictions"]["scored"]["labeled"] == old["predictions"]["scored"]["labeled"]
        chosen = selection(after, variant)
        assert new["selection"]["labeled"] == len(chosen.keys() - corrected.keys())


def test_corrected_images_never_vote(before: dict[str, Any], after: dict[str, Any], corrected: dict[str, int]) -> None:
    store = Store(after["storage"])
    images = set()
    for folder in folders(after["storage"], "verdict"):
        commits = [store.read_json(f"{folder}/commits/{name}")["votes"] for name in store.names(f"{folder}/commits")]
        images |= {sum(c["fused"][r]["images"] for c in commits) for r in (commits[0]["fused"] if commits else ())}
    assert images == {160, 160 - len(corrected)}


def test_a_second_run_has_nothing_to_do(after: dict[str, Any]) -> None:
    assert run(Config.model_validate(after["config"]))["status"] == "already done"


@needs_chromium
def test_labels_that_are_marked_in_the_report_are_obeyed_by_the_next_run(
    before: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    with opened(Path(before["report"])) as page:
        page.locator("[data-list=doubtful] .check").click()
        doubtful = page.evaluate("JSON.parse(document.getElementById('data').textContent)")["doubtful"]
        page.keyboard.press("n")
        page.keyboard.press("c")
        page.keyboard.type("seven")
        page.keyboard.press("Enter")
        with page.expect_download() as download:
            page.click("#download")
        download.value.save_as(tmp_path / "corrections.csv")
    none, seven = doubtful[0][0], doubtful[1][0]
    label = {"corrections": str(tmp_path / "corrections.csv")}
    summary = run(job_config(world, before["storage"], **SHORT, refine=REFINE, label=label))
    for variant in ("upl*", "refined"):
        chosen = selection(summary, variant)
        assert none not in chosen
        assert chosen[seven]["pseudo_label"] == CLASSNAMES.index("seven")
    with opened(Path(summary["report"])) as page:
        text = page.text_content("#correct")
        assert text
        rows = (tmp_path / "corrections.csv").read_text().splitlines()[1:]  # with those of the run before
        nothing = sum(row.split(",")[1] == "" for row in rows)
        said = (
            f"Before this run {len(rows)} images had been corrected by hand, {nothing} of them to none of the classes."
        )
        assert said in text
        left = page.evaluate("JSON.parse(document.getElementById('data').textContent)")["doubtful"]
        assert not {none, seven} & {row[0] for row in left}
