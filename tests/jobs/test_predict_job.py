"""The nightly job on a real Ray cluster: only new images cost anything, and their drift is seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy import stats
from worlds import committed_rows, folders

from upl_ray.config.cli import load_predict
from upl_ray.config.settings import Drift, Predict, Source
from upl_ray.demo.digits import CLASSNAMES
from upl_ray.errors import ConfigError, JobError
from upl_ray.pipeline.classifier import find_classifier
from upl_ray.pipeline.nightly import run
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store

ROOT = Path(__file__).parents[2]


def job(short_run: dict[str, Any], folder: Path, **fields: Any) -> Predict:
    compute = {"shard_size": 60, "chunk_size": 16, "max_actors": 1}
    source = {"uri": str(folder)}
    data = {"classifier": short_run["storage"], "corpus": source, "max_rejected": 0.1, "compute": compute}
    return Predict.model_validate(data | fields)


def test_the_corpus_of_the_training_is_labeled_already(short_run: dict[str, Any], short_world: Path) -> None:
    summary = run(job(short_run, short_world / "corpus"))
    assert summary["status"] == "already done"
    assert summary["predictions"] == short_run["predictions"]
    assert (summary["images"], summary["new"], summary["rejected"]) == (83, 0, 3)
    rejected = pq.read_table(f"{summary['snapshot']}/rejected.parquet")["image_id"].to_pylist()
    assert rejected == ["one/empty.png", "six/cut.png", "two/text.png"]
    assert not list(Path(summary["predictions"]).glob("*.parquet"))


def test_a_growing_folder_costs_its_new_images_and_drift_is_an_alert(
    short_run: dict[str, Any], short_world: Path, tmp_path: Path
) -> None:
    folder, storage = tmp_path / "camera", tmp_path / "storage"
    shutil.copytree(short_world / "scored", folder)
    limits = {"min_images": 10, "max_class_shift": 0.2}
    first = run(job(short_run, folder, storage_path=str(storage), drift=limits))
    assert (first["status"], first["images"], first["new"], first["drift"]) == ("done", 20, 20, None)
    again = run(job(short_run, folder, storage_path=str(storage), drift=limits))
    assert (again["status"], again["new"], again["alerts"]) == ("already done", 0, [])
    for path in sorted((short_world / "all" / "corpus" / "one").iterdir())[:30]:
        shutil.copy(path, folder / f"tonight-{path.name}")
    before = committed_rows(storage, folders(storage, "features")[0]).num_rows
    grown = run(job(short_run, folder, storage_path=str(storage), drift=limits))
    assert committed_rows(storage, folders(storage, "features")[0]).num_rows == before + 30
    assert (grown["images"], grown["new"]) == (50, 30)
    rows = committed_rows(storage, Path(grown["predictions"]).name).to_pylist()
    old = [r["label"] for r in rows if not r["image_id"].startswith("tonight")]
    new = [r["label"] for r in rows if r["image_id"].startswith("tonight")]
    shares = [(new.count(c) / 30, old.count(c) / 20) for c in range(10)]
    assert grown["drift"]["classes"]["shift"] == pytest.approx(sum(abs(n - o) for n, o in shares) / 2)
    most = max(range(10), key=lambda c: abs(shares[c][0] - shares[c][1]))
    assert grown["drift"]["classes"]["most_changed"][0]["classname"] == CLASSNAMES[most]
    confidence = [
        [r["confidence"] for r in rows if r["image_id"].startswith("tonight") == tonight] for tonight in (1, 0)
    ]
    t_tests = [stats.ttest_ind(*confidence, equal_var=equal, alternative="less").pvalue for equal in (True, False)]
    assert grown["drift"]["confidence"]["p"] == pytest.approx(max(t_tests))
    assert any("max_class_shift is 0.2" in a for a in grown["alerts"])
    still = run(job(short_run, folder, storage_path=str(storage), drift=limits))
    assert (still["status"], still["new"]) == ("already done", 0)
    assert json.loads((storage / "predict-run.json").read_text()) == json.loads(json.dumps(still))
    assert datetime.fromisoformat(still["time"]) >= datetime.fromisoformat(grown["time"])
    assert still["alerts"] == grown["alerts"]  # a scheduler that missed it sees it again


@pytest.mark.faults
def test_features_that_are_not_kept_are_made_for_new_images_only(
    short_run: dict[str, Any], short_world: Path, tmp_path: Path
) -> None:
    folder, storage = tmp_path / "camera", tmp_path / "storage"
    shutil.copytree(short_world / "scored", folder)
    fields = {"storage_path": str(storage), "keep_features": "none"}
    kept = run(job(short_run, short_world / "scored", storage_path=str(tmp_path / "kept")))
    run(job(short_run, folder, **fields))
    features = storage / folders(storage, "features")[0]
    assert not list((features / "parts").iterdir())
    again = run(job(short_run, folder, **fields))
    assert again["status"] == "already done"
    ours, theirs = (committed_rows(s["storage"], Path(s["predictions"]).name) for s in (again, kept))
    assert ours.equals(theirs)
    gone = sorted(p.relative_to(folder) for p in folder.rglob("*.png"))[3]
    (dropped,) = (features / "dropped").iterdir()
    embedded = dropped.stat().st_mtime_ns
    (folder / gone).unlink()
    less = run(job(short_run, folder, **fields))
    assert (less["images"], less["removed"], less["status"]) == (19, 1, "done")
    assert dropped.stat().st_mtime_ns == embedded  # no shard was embedded again: the rows that are left were known
    left = [pq.read_table(f"{less['predictions']}/{part}") for part in parts(less)]
    assert pa.concat_tables(left).equals(theirs.filter(pc.field("image_id") != str(gone)))


def parts(summary: dict[str, Any]) -> list[str]:
    manifest = json.loads((Path(summary["predictions"]) / "manifest.json").read_text())
    found: list[str] = manifest["parts"]
    return found


def test_bad_images_above_the_limit_stop_the_job(short_run: dict[str, Any], short_world: Path) -> None:
    with pytest.raises(JobError, match=r"3 of 83 images .* more than max_rejected = 0.01"):
        run(job(short_run, short_world / "corpus", max_rejected=0.01))
    left = json.loads((Path(short_run["storage"]) / "predict-run.json").read_text())
    assert left["status"] == "failed"
    assert left["error"].startswith("3 of 83 images")
    assert (datetime.now(UTC) - datetime.fromisoformat(left["time"])).total_seconds() < 60


def test_images_that_cannot_be_listed_are_told_in_the_storage(
    short_run: dict[str, Any], short_world: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    (storage / "predict-run.json").write_text(json.dumps({"status": "done"}))  # yesterday's
    with pytest.raises(ConfigError) as refused:
        run(job(short_run, tmp_path / "nowhere", storage_path=str(storage)))
    left = json.loads((storage / "predict-run.json").read_text())
    assert (left["status"], left["error"]) == ("failed", str(refused.value))


def test_a_classifier_is_known_by_its_folder_s_name(
    short_run: dict[str, Any], short_world: Path, tmp_path: Path
) -> None:
    folder = Path(short_run["classifier"])
    shutil.copytree(folder, tmp_path / "latest")
    shutil.copytree(folder, tmp_path / folder.name)
    renamed = Predict(classifier=str(tmp_path / "latest"), corpus=Source(uri=str(short_world / "scored")))
    with pytest.raises(ConfigError, match=f"was '{folder.name}' when it was made"):
        run(renamed)
    assert find_classifier(f"{tmp_path / folder.name}/")[0] == Step(
        Store(str(tmp_path)), "classifier", folder.name.rpartition("-")[2]
    )


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_a_classifier_that_is_not_there_is_refused(place: str, short_world: Path, tmp_path: Path) -> None:
    missing = Predict(classifier=str(tmp_path / place), corpus=Source(uri=str(short_world / "scored")))
    with pytest.raises(ConfigError, match=r"There is no classifier at .*the storage of a finished run"):
        run(missing)


def test_other_weights_are_refused(short_run: dict[str, Any], short_world: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights of .* differ from those the classifier was made with"):
        run(job(short_run, short_world / "scored", model="demo:vit_b"))


def test_both_ways_to_name_the_places_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "night.yaml").write_text("{classifier: a, corpus: {uri: b}, drift: {fail: true}}")
    by_file = load_predict([str(tmp_path / "night.yaml")], tmp_path)
    assert load_predict(["a", "b", "--drift.fail", "True"], tmp_path) == by_file
    assert by_file.drift == Drift(fail=True)
    with pytest.raises(ConfigError, match="'a' alone is not enough"):
        load_predict(["a"], tmp_path)


@pytest.mark.slow
def test_an_alert_can_be_an_exit_status(short_run: dict[str, Any], short_world: Path, tmp_path: Path) -> None:
    shutil.copytree(short_run["storage"], tmp_path / "run")
    predictions = tmp_path / "run" / Path(short_run["predictions"]).name
    manifest = json.loads((predictions / "manifest.json").read_text())
    classes = {"shift": 0.9, "beyond_chance": 0.8, "p": 0.0001, "most_changed": []}
    manifest["drift"] = {"new": 200, "before": 200, "removed": 0, "classes": classes}
    Store(str(tmp_path / "run")).write_json(f"{predictions.name}/manifest.json", manifest)
    command = [
        sys.executable,
        "jobs/predict.py",
        str(tmp_path / "run"),
        str(short_world / "corpus"),
        "--max-rejected",
        "0.1",
    ]
    quiet, loud = (
        subprocess.run([*command, "--drift.fail", fail], cwd=ROOT, capture_output=True, text=True, check=False)
        for fail in ("False", "True")
    )
    assert (quiet.returncode, loud.returncode) == (0, 1), quiet.stderr + loud.stderr
    assert quiet.stdout.splitlines()[-1].count("of the new images are in other classes") == 1


def test_a_mistake_in_the_program_is_told_in_the_storage(
    short_run: dict[str, Any], short_world: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    first = run(job(short_run, short_world / "scored", storage_path=str(storage)))
    assert json.loads((storage / "predict-run.json").read_text())["status"] == first["status"] == "done"
    (commit,) = storage.glob("features-*/commits/*.json")
    commit.unlink()
    store = Store(str(storage))
    store.write_json(str(commit.relative_to(storage)), {"parts": [], "rows": 20})  # whole, and not what it should be
    with pytest.raises(KeyError, match="rejected"):
        run(job(short_run, short_world / "scored", storage_path=str(storage)))
    left = json.loads((storage / "predict-run.json").read_text())
    assert (left["status"], left["error"]) == ("failed", "unexpected KeyError: 'rejected'")
