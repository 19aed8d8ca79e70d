"""The whole job on a real Ray cluster: real digits, real files, three backbones, start to predictions."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from worlds import ROOT, committed_rows, contexts, digit_world, folders, job_config, kill_job

from upl_ray.errors import JobError
from upl_ray.pipeline.main import run
from upl_ray.storage.store import Store


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_world(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def first(cluster: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run that the others are compared with."""
    return run(job_config(world, tmp_path_factory.mktemp("first"), variants=["upl*", "upl"]))


def modification_times(storage: str, *steps: str) -> dict[str, int]:
    files = [p for s in steps for p in Path(storage).glob(f"{s}-*/**/*") if p.is_file()]
    return {str(p): p.stat().st_mtime_ns for p in files}


def test_every_good_image_is_predicted_once_and_every_bad_one_is_reported(first: dict[str, Any], world: Path) -> None:
    store = Store(first["storage"])
    manifest = json.loads((Path(first["predictions"]) / "manifest.json").read_text())
    folder = Path(first["predictions"]).name
    ids = [i for part in manifest["parts"] for i in store.read_table(f"{folder}/{part}")["image_id"].to_pylist()]
    files = {str(p.relative_to(world / "corpus")) for p in (world / "corpus").rglob("*.png")}
    bad = {"one/empty.png", "two/text.png", "six/cut.png"}
    assert sorted(ids) == sorted(files - bad)
    assert first["images"] == len(files)
    assert first["rejected"] == 3
    rejected = store.read_table(f"{first['folders']['corpora']['corpus']}/rejected.parquet").to_pylist()
    assert {r["image_id"] for r in rejected} == bad
    assert {r["image_id"]: r["reason"].split(":")[0] for r in rejected} == {
        "one/empty.png": "empty file",
        "two/text.png": "not an image",
        "six/cut.png": "truncated or damaged image",
    }


def test_top_k_of_the_job_equals_a_naive_loop_over_its_pseudo_labels(first: dict[str, Any], world: Path) -> None:
    storage = first["storage"]
    for labels in folders(storage, "pseudo_labels"):
        rows = [r for r in committed_rows(storage, labels).to_pylist() if (world / "corpus" / r["image_id"]).exists()]
        expected = []
        for c in range(10):
            mine = sorted((-r["confidence"], r["image_id"]) for r in rows if r["pseudo_label"] == c)[:4]
            expected += [(c, rank, image_id) for rank, (_, image_id) in enumerate(mine)]
        selections = [
            Store(storage).read_table(f"{s}/selection.parquet").to_pylist() for s in folders(storage, "selection")
        ]
        assert expected in [[(r["pseudo_label"], r["rank"], r["image_id"]) for r in s] for s in selections]


def test_a_second_run_finds_everything_and_needs_no_ray(first: dict[str, Any], world: Path, tmp_path: Path) -> None:
    config = job_config(world, first["storage"], variants=["upl*", "upl"])
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    before = modification_times(first["storage"], "features", "pseudo_labels", "selection", "views", "members")
    nobody = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9", "PYTHONPATH": str(ROOT)}  # joining a cluster would fail
    command = [sys.executable, "jobs/upl.py", str(tmp_path / "job.yaml")]
    result = subprocess.run(command, cwd=ROOT, env=nobody, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["status"] == "already done"
    assert last["classifier"] == first["classifier"]
    assert set(last["accuracy"]) >= {"zero_shot", "upl* ensemble", "upl ensemble"}
    assert before == modification_times(first["storage"], "features", "pseudo_labels", "selection", "views", "members")
    written = json.loads((Path(first["storage"]) / "run.json").read_text())
    assert {p: s["labels"] for p, s in written["sources"].items()} == {"corpus": "folders", "scored": "folders"}
    assert written["folders"] == first["folders"]  # what the run worked on is kept once
    assert written["steps"] == first["steps"]  # the second run took no time, and says how long the first one took


def test_a_run_says_how_long_each_step_took_and_ends_with_its_report(first: dict[str, Any]) -> None:
    made = [folder for of in first["folders"]["variants"].values() for folder in of.values()]
    timed = {
        k: s for k, s in first["steps"].items() if k.startswith(("pseudo_labels", "views", "members", "predictions"))
    }
    assert timed.keys() <= set(made)
    assert len(timed) == 6  # views and members of both variants are made at once: their time stands beside one
    assert sum(first["steps"].values()) <= first["seconds"] + 1
    page = Path(first["report"]).read_text()
    assert "truncated or damaged image" in page
    assert f"{first['images']} images" in page
    assert page.count('<article class="card"') == 20


@pytest.mark.faults
def test_shards_and_groupings_do_not_change_the_contexts(first: dict[str, Any], world: Path, tmp_path: Path) -> None:
    compute = {"max_actors": 2, "trials": 3, "shard_size": 1000}
    second = run(job_config(world, tmp_path, backbones=["demo:vit_a"], variants=["upl"], compute=compute))
    for name in folders(tmp_path, "features"):
        ours, theirs = committed_rows(tmp_path, name), committed_rows(first["storage"], name)
        assert ours["image_id"].equals(theirs["image_id"])
        # Other shards make other chunks, so half-precision features may differ in their last bit.
        a, b = (np.asarray(t["image_features"].combine_chunks().flatten(), np.float32) for t in (ours, theirs))
        np.testing.assert_allclose(a, b, atol=1e-3)
    np.testing.assert_allclose(contexts(second["classifier"]), contexts(first["classifiers"]["upl"]), atol=1e-6)


@pytest.mark.faults
def test_the_same_run_into_another_storage_is_bitwise_equal(first: dict[str, Any], world: Path, tmp_path: Path) -> None:
    second = run(job_config(world, tmp_path, variants=["upl*", "upl"], compute={"max_actors": 3}))
    for step in ("features", "pseudo_labels", "selection", "views", "members", "classifier"):
        assert folders(tmp_path, step)
        assert set(folders(tmp_path, step)) <= set(folders(first["storage"], step))
    (bank,) = {p.parents[1].name for p in tmp_path.glob("views-*/parts/*")}  # of both variants
    for name in (*folders(tmp_path, "features"), *folders(tmp_path, "pseudo_labels"), bank):
        assert committed_rows(tmp_path, name).equals(committed_rows(first["storage"], name))
    assert np.array_equal(contexts(second["classifier"]), contexts(first["classifier"]))


@pytest.mark.slow
def test_members_whose_classes_two_workers_share_equal_those_of_a_plain_trial(
    first: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    shutil.copytree(first["storage"], tmp_path / "copy")
    for folder in (*folders(tmp_path / "copy", "members"), *folders(tmp_path / "copy", "classifier")):
        shutil.rmtree(tmp_path / "copy" / folder)
    compute = {"workers_per_trial": 2, "trials": 1}
    again = run(job_config(world, tmp_path / "copy", compute=compute))
    np.testing.assert_allclose(contexts(again["classifier"]), contexts(first["classifier"]), atol=1e-6)


@pytest.mark.slow
def test_views_that_two_variants_share_are_made_again_when_the_file_is_deleted_that_the_error_names(
    first: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "copy"
    shutil.copytree(first["storage"], storage)
    for step in ("members", "classifier", "predictions"):
        for folder in folders(storage, step):
            shutil.rmtree(storage / folder)
    (bank,) = {p.parents[1] for p in storage.glob("views-*/parts/*")}  # both variants' views refer to it
    part = sorted((bank / "parts").iterdir())[0]
    part.write_bytes(part.read_bytes()[:100])
    config = job_config(world, storage, variants=["upl*", "upl"])
    with pytest.raises(JobError, match=re.escape(f"Delete {bank}/manifest.json and run the job again")) as damaged:
        run(config)
    assert "\n" not in str(damaged.value)
    (bank / "manifest.json").unlink()
    again = run(config)
    for variant in ("upl*", "upl"):
        assert np.array_equal(contexts(again["classifiers"][variant]), contexts(first["classifiers"][variant]))


def test_a_new_recipe_recomputes_nothing_before_training(first: dict[str, Any], world: Path) -> None:
    steps = ("corpus", "features", "text", "pseudo_labels", "selection", "views")
    before = modification_times(first["storage"], *steps)
    trained = folders(first["storage"], "members")
    changed = run(job_config(world, first["storage"], train={"lr": 0.01, "members": 2}))
    assert changed["classifier"] != first["classifier"]
    assert len(folders(first["storage"], "members")) == len(trained) + 1
    assert modification_times(first["storage"], *steps) == before


def test_labels_change_scores_and_nothing_else(first: dict[str, Any], world: Path) -> None:
    steps = ("features", "pseudo_labels", "members", "predictions")
    before = modification_times(first["storage"], *steps)
    unlabeled = {"uri": str(world / "corpus"), "labels": "none"}
    config = job_config(world, first["storage"], corpus=unlabeled, scored={"uri": ""}, variants=["upl*", "upl"])
    blind = run(config)
    assert blind["classifier"] == first["classifier"]
    assert blind["scores"]["upl*"]["predictions"]["corpus"]["accuracy"] is None
    assert blind["scores"]["upl*"]["selection"]["precision"] is None
    assert first["scores"]["upl*"]["predictions"]["scored"]["accuracy"]["ensemble"] >= 0
    assert modification_times(first["storage"], *steps) == before
    assert run(config)["status"] == "already done"


@pytest.mark.faults
def test_new_changed_and_removed_images_cost_only_themselves(cluster: None, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "world")
    small, storage = tmp_path / "world", tmp_path / "storage"
    short = {"train": {"members": 1, "epochs": 1}, "backbones": ["demo:vit_a"], "scored": {"uri": ""}}
    run(job_config(small, storage, **short))
    features = folders(storage, "features")[0]
    commits = storage / features / "commits"
    before = {p.name for p in commits.iterdir()}
    extra = sorted((small / "all" / "corpus" / "nine").iterdir())[-3:]
    for path in extra[:2]:
        shutil.copy(path, small / "corpus" / "nine" / path.name)
    victim, changed = sorted((small / "corpus" / "five").iterdir())[:2]
    victim.unlink()
    changed.write_bytes(extra[2].read_bytes())
    grown = run(job_config(small, storage, **short))
    new = [json.loads(p.read_text()) for p in commits.iterdir() if p.name not in before]
    assert sum(c["rows"] for c in new) == 3  # two new images and the changed one
    folder = Path(grown["predictions"]).name
    manifest = json.loads((storage / folder / "manifest.json").read_text())
    ids = [
        i for p in manifest["parts"] for i in Store(str(storage)).read_table(f"{folder}/{p}")["image_id"].to_pylist()
    ]
    readable = {str(p.relative_to(small / "corpus")) for p in (small / "corpus").rglob("*.png")}
    assert sorted(ids) == sorted(readable - {"one/empty.png", "two/text.png", "six/cut.png"})


def test_too_many_bad_images_stop_the_job_with_their_reasons(first: dict[str, Any], world: Path) -> None:
    config = job_config(world, first["storage"], label={"max_rejected": 0.01})
    with pytest.raises(
        RuntimeError, match=r"3 of 163 images .* unreadable.*max_rejected = 0.01.*'one/empty.png': empty file"
    ):
        run(config)


@pytest.mark.slow
def test_a_killed_job_resumes_and_ends_with_the_same_contexts(
    first: dict[str, Any], world: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    one = {"backbones": ["demo:vit_a"], "variants": ["upl"]}
    config = job_config(world, storage, train={"members": 4, "epochs": 6, "checkpoint_every": 1}, **one)
    kill_job(config, tmp_path, lambda: bool(list(storage.glob("members-*/checkpoints/*.safetensors"))))
    resumed = run(config)
    assert resumed["status"] == "done"
    assert np.array_equal(contexts(resumed["classifier"]), contexts(first["classifiers"]["upl"]))
