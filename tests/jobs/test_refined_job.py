"""Refined labels and the verdict on a real Ray cluster: the distributed steps against the plain function."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import committed_rows, contexts, digit_world, folders, job_config, kill_job

from upl_ray.config.settings import Config
from upl_ray.errors import JobError
from upl_ray.pipeline import sample
from upl_ray.pipeline.inputs import prepare
from upl_ray.pipeline.main import run
from upl_ray.pipeline.plan import plan_run
from upl_ray.pipeline.pseudo_labels import label_each, read_mixture
from upl_ray.storage.step import open_step
from upl_ray.storage.store import Store
from upl_ray.upl.ensemble import load_ensemble
from upl_ray.upl.fusion import fuse
from upl_ray.upl.refine import floored, refine

pytestmark = pytest.mark.slow  # whole runs, of minutes

SHORT: dict[str, Any] = {"train": {"members": 2, "epochs": 3}, "variants": ["refined"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_world(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def first(cluster: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three labelers, and four images a class on average to learn from."""
    storage = tmp_path_factory.mktemp("first")
    return run(job_config(world, storage, **SHORT, refine={"train_per_class": 4}))


def step_of(summary: dict[str, Any], name: str) -> str:
    folder: str = summary["folders"]["variants"]["refined"][name]
    return folder


def plain(summary: dict[str, Any]) -> tuple[list[str], list[torch.Tensor], torch.Tensor]:
    """Ids, features and fused probabilities of the corpus, from the storage of a run."""
    inputs = prepare(Config.model_validate(summary["config"]))
    labelers = plan_run(inputs).labelers["refined"]
    parts = [label_each(shard, labelers) for shard in inputs.corpus.shards]
    ids = [i for of, _, _ in parts for i in of]
    features = [torch.from_numpy(np.concatenate([f[b] for _, f, _ in parts])) for b in range(len(labelers))]
    fused = np.concatenate([fuse([of] * len(own), own)[1] for of, _, own in parts])
    return ids, features, torch.from_numpy(fused)


def test_labels_of_the_job_are_those_of_the_plain_function(first: dict[str, Any]) -> None:
    ids, features, fused = plain(first)
    expected = refine(features, fused)
    confidence = dict(zip(ids, expected.probabilities.max(dim=1).values.tolist(), strict=True))
    label = dict(zip(ids, expected.probabilities.argmax(dim=1).tolist(), strict=True))
    rows = committed_rows(first["storage"], step_of(first, "pseudo_labels")).to_pylist()
    rows = [r for r in rows if r["image_id"] in label]  # without those of the scored images
    assert len(rows) == len(ids) == 160
    assert [r["pseudo_label"] for r in rows] == [label[r["image_id"]] for r in rows]
    np.testing.assert_allclose([r["confidence"] for r in rows], [confidence[r["image_id"]] for r in rows], atol=1e-4)
    manifest = Store(first["storage"]).read_json(f"{step_of(first, 'refinement')}/manifest.json")
    np.testing.assert_allclose(manifest["class_shares"], expected.class_shares, atol=1e-6)
    assert manifest["images"] == 160
    assert sum(manifest["class_images"]) == pytest.approx(160)


def test_the_fit_does_not_depend_on_how_the_sample_is_grouped(
    first: dict[str, Any], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "SHARDS_OF_GROUP", 1)
    shutil.copytree(first["storage"], tmp_path / "storage")
    shutil.rmtree(tmp_path / "storage" / step_of(first, "refinement"))
    again = run(job_config(world, tmp_path / "storage", **SHORT, refine={"train_per_class": 4}))
    stores = [Store(s["storage"]) for s in (first, again)]
    steps = [open_step(store, step_of(first, "refinement")) for store in stores]
    for one, other in zip(*(read_mixture(s)[0].means for s in steps), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    counts = [store.read_json(f"{step_of(first, 'refinement')}/manifest.json")["class_images"] for store in stores]
    np.testing.assert_allclose(*counts, rtol=1e-4)


def test_prompts_learn_a_uniform_sample_with_soft_targets(first: dict[str, Any]) -> None:
    ids, features, fused = plain(first)
    row = {image_id: i for i, image_id in enumerate(ids)}
    z = refine(features, fused).probabilities
    views = committed_rows(first["storage"], step_of(first, "views"))
    chosen = [row[i] for i in views["image_id"].to_pylist()]
    assert 20 <= len(chosen) <= 60  # 40 are expected
    np.testing.assert_allclose(np.array(views["targets"].to_pylist()), z[chosen], atol=1e-4)
    target = [x.spec.name for x in plan_run(prepare(Config.model_validate(first["config"]))).labelers["refined"]]
    own = features[target.index(first["target"])]
    np.testing.assert_array_equal(np.array(views["view_features"].to_pylist()), own[chosen].numpy())
    selection = Store(first["storage"]).read_table(f"{step_of(first, 'selection')}/selection.parquet").to_pylist()
    assert {r["image_id"]: r["pseudo_label"] for r in selection} == {ids[i]: int(z[i].argmax()) for i in chosen}


def test_the_classifier_keeps_the_class_shares_and_predictions_use_them(first: dict[str, Any]) -> None:
    ensemble = load_ensemble(first["classifier"])
    ids, features, fused = plain(first)
    shares = floored(refine(features, fused).class_shares)
    assert ensemble.class_shares is not None
    np.testing.assert_allclose(ensemble.class_shares, shares, atol=1e-6)
    names = [x.spec.name for x in plan_run(prepare(Config.model_validate(first["config"]))).labelers["refined"]]
    x = features[names.index(first["target"])].float()
    logits = ensemble.metadata["logit_scale"] * torch.einsum("nd,scd->nsc", x, ensemble.text_features)
    expected = {
        "label": (logits + ensemble.class_shares.log()).softmax(-1).mean(1).argmax(1),
        "even_label": logits.softmax(-1).mean(1).argmax(1),
    }
    rows = {r["image_id"]: r for r in committed_rows(first["storage"], step_of(first, "predictions")).to_pylist()}
    for column, labels in expected.items():
        assert [rows[i][column] for i in ids] == labels.tolist()


def test_hard_targets_and_learning_without_class_shares(first: dict[str, Any], world: Path) -> None:
    hard = job_config(
        world, first["storage"], **SHORT, refine={"train_per_class": 4, "targets": "hard", "adjust": False}
    )
    summary = run(hard)
    assert summary["steps"].keys() > {"features"}
    assert step_of(summary, "pseudo_labels") == step_of(first, "pseudo_labels")
    assert "targets" not in committed_rows(summary["storage"], step_of(summary, "views")).column_names
    assert load_ensemble(summary["classifier"]).class_shares is None
    assert not np.array_equal(contexts(summary["classifier"]), contexts(first["classifier"]))


def test_a_referee_labels_nothing_and_judges_everything(first: dict[str, Any], world: Path) -> None:
    summary = run(
        job_config(world, first["storage"], label={"referee": "rn"}, **{**SHORT, "variants": ["upl*", "upl"]})
    )
    assert summary["scores"]["upl*"]["labelers"] == ["vit_a", "vit_b"]
    assert list(summary["verdict"]["upl*"]["classifier"]["referees"]) == ["rn"]
    assert list(summary["verdict"]["upl*"]["labels"]["referees"]) == ["vit_b"]  # vit_a is the target
    assert set(summary["verdict"]["upl"]["classifier"]["referees"]) == {"rn", "vit_b"}
    assert summary["verdict"]["upl"]["labels"] is None
    accuracy = summary["scores"]["upl"]
    gain = (
        accuracy["predictions"]["corpus"]["accuracy"]["ensemble"] - accuracy["zero_shot"]["corpus"]["accuracy"]["vit_a"]
    )
    assert summary["verdict"]["upl"]["classifier"]["truth"] == pytest.approx(gain)


def test_a_worse_classifier_is_said_loudly_and_may_stop_the_job(
    first: dict[str, Any], world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Prompts that were thrown far away from any text are worse than the template."""
    shutil.copytree(first["storage"], tmp_path / "storage")
    (tmp_path / "storage" / "run.json").unlink()
    published = set((tmp_path / "storage").glob("predictions-*/manifest.json"))
    thrown = {"train": {"members": 1, "epochs": 2, "lr": 1e3}, "variants": ["upl"]}
    with pytest.raises(JobError, match=r"on_worse is stop: classifier of upl: worse \(-.*by rn, vit_b\).*template"):
        run(job_config(world, tmp_path / "storage", on_worse="stop", **thrown))
    assert not (tmp_path / "storage" / "run.json").exists()
    assert set((tmp_path / "storage").glob("predictions-*/manifest.json")) == published
    summary = run(job_config(world, tmp_path / "storage", **thrown))
    assert summary["verdict"]["upl"]["classifier"]["answer"] == "worse"
    assert summary["verdict"]["upl"]["classifier"]["truth"] < 0
    assert "WORSE THAN THE TEMPLATE" in caplog.text


@pytest.mark.slow
def test_a_growing_corpus_refines_only_new_shards_until_the_fit_moves(cluster: None, tmp_path: Path) -> None:
    world = digit_world(tmp_path / "world", corpus_per_class=60)
    shutil.rmtree(world / "corpus" / "zero")
    short: dict[str, Any] = {
        "backbones": ["demo:vit_a"],
        "scored": {"uri": ""},
        "train": {"members": 1, "epochs": 1},
        "variants": ["refined"],
        "refine": {"train_per_class": 8},
    }
    before = run(job_config(world, tmp_path / "storage", **short))
    labels = tmp_path / "storage" / step_of(before, "pseudo_labels") / "commits"
    shards = {p.name for p in labels.iterdir()}
    for name in ("three", "seven"):  # as two images of 540 more
        path = sorted((world / "all" / "corpus" / name).iterdir())[-1]
        shutil.copy(path, world / "corpus" / name / path.name)
    grown = run(job_config(world, tmp_path / "storage", **short))
    fitted = Store(grown["storage"]).read_json(f"{step_of(grown, 'refinement')}/manifest.json")
    assert (fitted["kept"], fitted["moved"] < 0.005) == (step_of(before, "refinement"), True)
    assert step_of(grown, "pseudo_labels") == step_of(before, "pseudo_labels")
    new = {p.name for p in labels.iterdir()} - shards
    assert sum(json.loads((labels / name).read_text())["rows"] for name in new) == 2
    shutil.copytree(world / "all" / "corpus" / "zero", world / "corpus" / "zero")  # a class that was not there
    moved = run(job_config(world, tmp_path / "storage", **short))
    assert step_of(moved, "pseudo_labels") != step_of(before, "pseudo_labels")
    assert Store(moved["storage"]).read_json(f"{step_of(moved, 'refinement')}/manifest.json")["moved"] > 0.005


def _commits_of_refined(storage: Path) -> bool:
    """The last pass has begun: pseudo-labels are committed under a refinement."""
    return bool(list(storage.glob("refinement-*/manifest.json"))) and bool(
        list(storage.glob("pseudo_labels-*/commits/*"))
    )


# Sweeps, and shards in the last pass, for long enough to be killed in.
LONG: dict[str, Any] = {
    **SHORT,
    "backbones": ["demo:vit_a"],
    "compute": {"shard_size": 4},
    "refine": {"sweeps": 300},
}


@pytest.fixture(scope="module")
def undisturbed(cluster: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(job_config(world, tmp_path_factory.mktemp("undisturbed"), **LONG))


@pytest.mark.parametrize(
    "reached",
    [
        pytest.param(lambda s: "/300 sweeps" in (s.parent / "log").read_text(), id="sweep", marks=pytest.mark.faults),
        pytest.param(_commits_of_refined, id="last-pass", marks=pytest.mark.slow),
    ],
)
def test_a_job_killed_while_it_refines_ends_as_if_undisturbed(
    undisturbed: dict[str, Any], world: Path, tmp_path: Path, reached: Callable[[Path], bool]
) -> None:
    config = job_config(world, tmp_path / "storage", **LONG)
    kill_job(config, tmp_path, lambda: reached(tmp_path / "storage"))
    resumed = run(config)
    assert np.array_equal(contexts(resumed["classifier"]), contexts(undisturbed["classifier"]))
    rows = [committed_rows(s["storage"], step_of(s, "pseudo_labels")) for s in (resumed, undisturbed)]
    assert rows[0].equals(rows[1])
    assert folders(tmp_path / "storage", "refinement") == folders(undisturbed["storage"], "refinement")
