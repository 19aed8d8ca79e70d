"""Comparison and ablation on a real Ray cluster: a small world of digits, few members and epochs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest
from worlds import digit_world, folders, job_config

from upl_ray.commands import ablate as ablate_command
from upl_ray.commands import compare as compare_command
from upl_ray.config.cli import run_job
from upl_ray.config.settings import Config
from upl_ray.demo.digits import CLASSNAMES
from upl_ray.errors import ConfigError
from upl_ray.pipeline.main import run
from upl_ray.storage.step import open_step
from upl_ray.storage.store import Store
from upl_ray.studies.ablate import ablate
from upl_ray.studies.compare import compare
from upl_ray.studies.study import study_inputs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COMPARE = {"seeds": 2, "shots": [1, 3], "templates": ["a {}.", "the digit {}."], "resamples": 200, "transductive": True}
ABLATE = {
    "seeds": 1,
    "top_k": [2],
    "thresholds": [0.6],
    "labelers": "own-fused",
    "n_ctx": [2],
    "views": [0, 2],
    "members": [1],
    "beta": [2],
    "sample_per_class": [4],
    "train_per_class": [3],
    "targets": ["hard"],
    "adjust": [False],
}
THINNED = ("upl", "upl*", "refined", "coop")
NO_POINT: dict[str, Any] = {
    factor: []
    for factor in (
        *("top_k", "thresholds", "n_ctx", "views", "members"),
        *("beta", "sample_per_class", "train_per_class", "targets", "adjust"),
    )
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_world(tmp_path_factory.mktemp("world"))


def settings(world: Path, storage: Path, **sections: Any) -> Config:
    short = {"train": {"members": 2, "epochs": 2}, "views": {"count": 3}, "variants": ["upl*", "upl", "refined"]}
    short |= {"refine": {"sample_per_class": 12, "train_per_class": 6, "sweeps": 4}}
    short |= {"compare": {**COMPARE, "threshold": 0.6}, "ablate": ABLATE}
    return job_config(world, storage, **{**short, **sections})


@pytest.fixture(scope="module")
def compared(cluster: None, world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any]]:
    """The main job, then the comparison in the same storage."""
    config = settings(world, tmp_path_factory.mktemp("run"))
    before = run(config)
    return config, {"before": before, "members": folders(config.storage_path, "members"), **compare(config)}


def manifest(uri: str) -> dict[str, Any]:
    return dict(json.loads((Path(uri) / "manifest.json").read_text()))


def test_every_method_is_run_and_written_in_four_forms(compared: tuple[Config, dict[str, Any]]) -> None:
    config, summary = compared
    assert summary["status"] == "done"
    rows = manifest(summary["comparison"])["rows"]
    assert len(rows) == 8 + 5 * 2
    assert [r["method"] for r in rows if r["accuracy"] is None] == []
    one_run = {"zero-shot", "templates", "fused"}
    assert {r["method"]: r["runs"] for r in rows} == {m: 1 if m in one_run else 2 for m in config.compare.methods}
    assert [r["method"] for r in rows if r["transductive"]] == list(config.compare.methods[:8])
    assert {r["method"] for r in rows if r["chosen"]} == {
        "linear-probe",
        "clip-adapter",
        "tip-adapter",
        "tip-adapter-f",
    }
    assert {p.name for p in Path(summary["comparison"]).iterdir()} == {
        *("manifest.json", "comparison.md", "comparison.csv", "comparison.json", "comparison.png")
    }
    assert (Path(summary["comparison"]) / "comparison.md").read_text().strip() == summary["table"]


def test_the_main_job_s_results_are_rows_of_the_table(compared: tuple[Config, dict[str, Any]]) -> None:
    config, summary = compared
    scores = summary["before"]["scores"]
    rows = {r["method"]: r for r in manifest(summary["comparison"])["rows"]}
    accuracies = scores["upl*"]["zero_shot"]["scored"]["accuracy"]
    target = config.target_backbone.label
    assert rows["zero-shot"]["accuracy"]["mean"] == pytest.approx(accuracies[target])
    assert rows["fused"]["accuracy"]["mean"] == pytest.approx(accuracies["fused"])
    seen = scores["upl*"]["zero_shot"]["corpus"]["accuracy"][target]
    assert rows["zero-shot"]["transductive"]["mean"] == pytest.approx(seen)
    main = Store(config.storage_path)
    for variant in ("upl", "upl*", "refined"):  # the first of two runs is the main job's: its members are found again
        found = scores[variant]["predictions"]
        expected = {"accuracy": found["scored"]["accuracy_even"]}  # held-out images are of an even mixture
        expected["transductive"] = found["corpus"]["accuracy"]["ensemble"]  # and the corpus of its own
        for column, ensemble in expected.items():
            spread = rows[variant][column]
            half = spread["deviation"] / 2**0.5
            assert min(abs(spread["mean"] + half - ensemble), abs(spread["mean"] - half - ensemble)) < 1e-9
    assert set(summary["members"]) < set(folders(main.uri, "members"))
    refined = summary["before"]["folders"]["variants"]["refined"]
    # The main job's, those with which its two other backbones judge, and that of the target's own labels.
    assert len(folders(main.uri, "refinement")) == 4
    assert refined["refinement"] in folders(main.uri, "refinement")


def test_a_rerun_does_nothing_and_a_lost_run_alone_is_repeated(compared: tuple[Config, dict[str, Any]]) -> None:
    config, summary = compared
    again = compare(config)
    assert (again["status"], again["table"]) == ("already done", summary["table"])
    lost = sorted(Path(config.storage_path).glob("method-*"))[0]
    before = manifest(str(lost))
    (lost / "manifest.json").unlink()
    assert compare(config)["table"] == summary["table"]
    after = manifest(str(lost))
    assert {k: v for k, v in after.items() if k not in ("provenance", "sha256")} == {
        k: v for k, v in before.items() if k not in ("provenance", "sha256")
    }


@pytest.mark.parametrize(("job", "damaged"), [(compare_command, "features"), (ablate_command, "pseudo_labels")])
def test_a_damaged_part_ends_a_study_with_one_sentence_and_deleting_the_file_it_names_helps(
    job: ModuleType,
    damaged: str,
    compared: tuple[Config, dict[str, Any]],
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only the study reads the part: features in a plain Ray task, pseudo-labels in Ray Data."""
    config, summary = compared
    shutil.copytree(config.storage_path, tmp_path / "run")
    config = settings(world, tmp_path / "run", ablate={**ABLATE, **NO_POINT, "top_k": [3]})
    inputs, folders_of = study_inputs(config), summary["before"]["folders"]
    if damaged == "features":
        folder, shard = (
            folders_of["features"][config.target_backbone.label],
            inputs.corpora_by_field["scored"].shards[0],
        )
        sorted((tmp_path / "run").glob("method-*"))[0].joinpath("manifest.json").unlink()
    else:
        folder, shard = folders_of["variants"]["upl*"]["pseudo_labels"], inputs.corpus.shards[0]
    step = open_step(Store(config.storage_path), folder)
    part = Path(step.uri) / step.read_commit(shard.state)["parts"][0]
    part.write_bytes(part.read_bytes()[:-7])
    (tmp_path / "study.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    arguments = [str(tmp_path / "study.yaml")]
    capsys.readouterr()
    assert run_job(lambda: job.main(arguments)) == 1
    output = capsys.readouterr()
    remedy = f"{step.uri}/commits/{shard.state}.json"
    sentence = f"{part} is damaged or gone. Delete {remedy} and run the job again, which repeats that work."
    assert json.loads(output.out) == {"status": "failed", "error": sentence}
    assert output.err.splitlines()[-1] == f"error: {sentence}"
    assert "Traceback" not in output.err
    Path(remedy).unlink()
    assert run_job(lambda: job.main(arguments)) == 0
    output = capsys.readouterr()
    assert job is ablate_command or summary["table"] in output.out


def test_the_documented_snippet_averages_tables(compared: tuple[Config, dict[str, Any]]) -> None:
    config, summary = compared
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(), re.S)
    assert code is not None
    program = re.sub(r"in \(.*\):  # and the others", f"in ({config.storage_path!r},):", code[1])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    rows = manifest(summary["comparison"])["rows"]
    assert len(done.stdout.splitlines()) == len(rows)
    assert f"UPL* None {100 * rows[5]['accuracy']['mean']:.2f} % on 1 data sets" in done.stdout


def test_an_ablation_varies_one_thing_at_a_time(compared: tuple[Config, dict[str, Any]], world: Path) -> None:
    config, _ = compared
    result = ablate(config)
    rows = manifest(result["ablation"])["rows"]
    points = [(r["factor"], r["value"]) for r in rows]
    assert points == [
        *(("top-K", "2"), ("top-K", "4")),
        *(("selection", f"{kind}, {labels}") for labels in ("own", "fused") for kind in ("top-K", "≥ 0.6", "refined")),
        *(("labels", "vit_a"), ("labels", "all fused")),
        *(("context length", "2"), ("context length", "16"), ("views", "0"), ("views", "2"), ("views", "3")),
        *(("members", "1"), ("members", "2"), ("averaged", "probabilities"), ("averaged", "logits")),
        *(("refined: beta", "2"), ("refined: beta", "5")),
        *(("refined: images of the fit", "4"), ("refined: images of the fit", "12")),
        *(("refined: images learned", "3"), ("refined: images learned", "6")),
        *(("refined: targets", "hard"), ("refined: targets", "soft")),
        *(("refined: logit adjustment", "without"), ("refined: logit adjustment", "with")),
    ]
    assert len({r["factor"] for r in rows if r["configured"]}) == len({r["factor"] for r in rows})
    configured = {(r["factor"].startswith("refined"), json.dumps(r["transductive"])) for r in rows if r["configured"]}
    assert len(configured) == 2  # the top-K, and refined labels
    fused = next(r for r in rows if r["value"] == "refined, fused")
    assert (True, json.dumps(fused["transductive"])) in configured
    assert fused["images"] < len(list((world / "corpus").glob("*/*.png")))
    assert {p.name for p in Path(result["ablation"]).iterdir()} == {
        *("manifest.json", "ablation.md", "ablation.csv", "ablation.json", "ablation.png")
    }
    again = ablate(config)
    assert (again["status"], again["table"]) == ("already done", result["table"])


def test_members_that_an_ablation_adds_are_in_the_manifest_and_the_history(
    compared: tuple[Config, dict[str, Any]], world: Path
) -> None:
    config, summary = compared
    storage, folder = Path(config.storage_path), summary["before"]["folders"]["variants"]["upl*"]["members"]
    assert manifest(str(storage / folder))["members"] == 2
    only = {**NO_POINT, "members": [3]}
    ablation = ablate(settings(world, storage, ablate={**ABLATE, **only}))
    assert manifest(str(storage / folder))["members"] == 3
    history = pq.read_table(storage / folder / "history.parquet")
    assert set(history["member"].to_pylist()) == {0, 1, 2}
    assert len(history) == 3 * config.train.epochs
    finer = {**COMPARE, "threshold": 0.6, "resamples": 300}
    other = ablate(settings(world, storage, ablate={**ABLATE, **only}, compare=finer))
    assert other["ablation"] != ablation["ablation"]  # intervals of other resamples


def test_without_labels_a_comparison_is_refused_and_few_shot_rows_stay_empty(
    compared: tuple[Config, dict[str, Any]], world: Path
) -> None:
    config, _ = compared
    with pytest.raises(ConfigError, match=r"scored\.uri or scored\.labels"):
        compare(settings(world, Path(config.storage_path), scored={"labels": "none"}))
    inductive = {**COMPARE, "transductive": False, "threshold": 0.6}
    unlabeled = compare(settings(world, Path(config.storage_path), corpus={"labels": "none"}, compare=inductive))
    rows = manifest(unlabeled["comparison"])["rows"]
    assert {r["method"] for r in rows if r["accuracy"] is None} == set(config.compare.methods[8:])
    assert "± " in unlabeled["table"]


def test_a_thinned_corpus_shares_features_and_leaves_the_given_one_alone(
    compared: tuple[Config, dict[str, Any]], world: Path
) -> None:
    config, summary = compared
    storage = Path(config.storage_path)
    before = {f: sorted(p.name for p in (storage / f).rglob("*")) for f in folders(storage, "features")}
    kept = {p: p.read_bytes() for p in storage.glob("corpus-*/refinements/*")}
    uneven = {**COMPARE, "threshold": 0.6, "imbalance": 8, "classes_present": 0.5, "methods": ["zero-shot", *THINNED]}
    thinned = compare(settings(world, storage, compare=uneven))
    assert thinned["comparison"] != summary["comparison"]
    rows = {r["method"]: r for r in manifest(thinned["comparison"])["rows"]}
    assert [m for m, r in rows.items() if not r["accuracy"]] == []
    given = {r["method"]: r for r in manifest(summary["comparison"])["rows"]}
    assert rows["zero-shot"]["accuracy"] == given["zero-shot"]["accuracy"]  # the same held-out images
    images = {labeled_images(storage, p.parent) for p in storage.glob("method-*/corpus.parquet")}
    assert len(images) == 2
    few = min(images, key=len)
    sizes = [sum(i.startswith(f"{c}/") for i in few) for c in CLASSNAMES]
    assert sorted(sizes) == [0] * 5 + [2, 3, 6, 10, 16]  # 16 * 8 ** (-k / 4)
    assert few < max(images, key=len)
    assert {f: sorted(p.name for p in (storage / f).rglob("*")) for f in folders(storage, "features")} == before
    assert {p: p.read_bytes() for p in storage.glob("corpus-*/refinements/*")} == kept
    assert compare(settings(world, storage, compare=uneven))["status"] == "already done"
    assert compare(config)["table"] == summary["table"]


def labeled_images(storage: Path, step: Path) -> frozenset[str]:
    """Ids of the images of the corpus that a method has classified."""
    return frozenset(open_step(Store(str(storage)), step.name).read_table("corpus.parquet")["image_id"].to_pylist())
