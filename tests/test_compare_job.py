"""Comparison and ablation on a real Ray cluster: a small world of digits, few members and epochs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from worlds import digit_world, folders, job_config

from upl_ray.ablate import ablate
from upl_ray.artifacts import Store
from upl_ray.compare import compare
from upl_ray.config import Config, ConfigError
from upl_ray.pipeline import run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
COMPARE = {"seeds": 2, "shots": [1, 3], "templates": ["a {}.", "the digit {}."], "resamples": 200, "transductive": True}
ABLATE = {
    "seeds": 1,
    "top_k": [2],
    "thresholds": [0.6],
    "labelers": "own-fused",
    "n_ctx": [2],
    "views": [0, 2],
    "members": [1],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digit_world(tmp_path_factory.mktemp("world"))


def settings(world: Path, storage: Path, **sections: Any) -> Config:
    short = {"train": {"members": 2, "epochs": 2}, "views": {"count": 3}, "variants": ["upl*", "upl"]}
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
    assert len(rows) == 6 + 5 * 2
    assert [r["method"] for r in rows if r["accuracy"] is None] == []
    one_run = {"zero-shot", "templates", "fused"}
    assert {r["method"]: r["runs"] for r in rows} == {m: 1 if m in one_run else 2 for m in config.compare.methods}
    assert [r["method"] for r in rows if r["transductive"]] == list(config.compare.methods[:6])
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
    for variant in ("upl", "upl*"):  # the first of two runs is the main job's: its members are found again
        ensemble = scores[variant]["predictions"]["scored"]["accuracy"]["ensemble"]
        spread = rows[variant]["accuracy"]
        half = spread["deviation"] / 2**0.5
        assert min(abs(spread["mean"] + half - ensemble), abs(spread["mean"] - half - ensemble)) < 1e-9
    assert set(summary["members"]) < set(folders(main.uri, "members"))


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


def test_the_documented_snippet_averages_tables(compared: tuple[Config, dict[str, Any]]) -> None:
    config, summary = compared
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "compare.md").read_text(), re.S)
    assert code is not None
    program = re.sub(r"in \(.*\):  # and the others", f"in ({config.storage_path!r},):", code[1])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    rows = manifest(summary["comparison"])["rows"]
    assert len(done.stdout.splitlines()) == len(rows)
    assert f"UPL* None {100 * rows[5]['accuracy']['mean']:.2f} % on 1 data sets" in done.stdout


def test_an_ablation_varies_one_thing_at_a_time(compared: tuple[Config, dict[str, Any]]) -> None:
    config, _ = compared
    result = ablate(config)
    rows = manifest(result["ablation"])["rows"]
    points = [(r["factor"], r["value"]) for r in rows]
    assert points == [
        *(("top-K", "2"), ("top-K", "4")),
        *(("selection", v) for v in ("top-K, own", "≥ 0.6, own", "top-K, fused", "≥ 0.6, fused")),
        *(("labels", "vit_a"), ("labels", "all fused")),
        *(("context length", "2"), ("context length", "16"), ("views", "0"), ("views", "2"), ("views", "3")),
        *(("members", "1"), ("members", "2"), ("averaged", "probabilities"), ("averaged", "logits")),
    ]
    assert len({r["factor"] for r in rows if r["configured"]}) == len({r["factor"] for r in rows})
    configured = {json.dumps(r["accuracy"]) for r in rows if r["configured"]}
    assert len(configured) == 1
    assert {p.name for p in Path(result["ablation"]).iterdir()} == {
        *("manifest.json", "ablation.md", "ablation.csv", "ablation.json", "ablation.png")
    }
    again = ablate(config)
    assert (again["status"], again["table"]) == ("already done", result["table"])


def test_members_that_an_ablation_adds_are_in_the_manifest_and_the_history(
    compared: tuple[Config, dict[str, Any]], world: Path
) -> None:
    config, summary = compared
    storage, folder = Path(config.storage_path), summary["before"]["artifacts"]["variants"]["upl*"]["members"]
    assert manifest(str(storage / folder))["members"] == 2
    only = {**{axis: [] for axis in ("top_k", "thresholds", "n_ctx", "views")}, "members": [3]}
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
    assert {r["method"] for r in rows if r["accuracy"] is None} == set(config.compare.methods[6:])
    assert "± " in unlabeled["table"]
