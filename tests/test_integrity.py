import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors
import safetensors.torch
import torch
from worlds import SHORT, committed_rows, contexts, folders, job_config

from upl_ray import integrity
from upl_ray.artifacts import Artifact
from upl_ray.command_line import load_config
from upl_ray.config import ConfigError, JobError, Train
from upl_ray.ensemble import load_ensemble
from upl_ray.integrity import Damaged
from upl_ray.members import read_checkpoint, read_members
from upl_ray.predict import find_classifier
from upl_ray.repair import repair
from upl_ray.report.page import write_report
from upl_ray.storage import Store
from upl_ray.summary import earlier_seconds

TENSORS = {"ctx": torch.arange(6.0).reshape(2, 3), "half": torch.ones(5, dtype=torch.float16)}


def sealed() -> dict[str, tuple[bytes, Callable[[bytes], Any]]]:
    tensors = safetensors.torch.save(TENSORS, {"upl_ray": json.dumps({"classnames": ["ä", "b"]})})
    name = integrity.hashed_name("parts/a", ".parquet", b"rows of a shard")
    return {
        "json": (integrity.seal_json({"parts": ["a"], "n": 1}, "p"), lambda data: integrity.open_json(data, "x", "p")),
        "tensors": (integrity.seal_tensors(tensors, "p"), lambda data: integrity.open_tensors(data, "x", "p")),
        "name": (b"rows of a shard", lambda data: integrity.check_name(name, data, "x")),
    }


@pytest.mark.parametrize("kind", ["json", "tensors", "name"])
def test_every_single_flipped_bit_and_every_cut_is_found(kind: str) -> None:
    data, opened = sealed()[kind]
    opened(data)
    for i in range(len(data)):
        flipped = data[:i] + bytes([data[i] ^ 1 << random.Random(i).randrange(8)]) + data[i + 1 :]
        for altered in (data[:i], flipped):
            try:
                opened(altered)
            except Damaged:
                continue
            # Only what means the same may pass: other white space in JSON.
            assert kind != "name"
            if kind == "json":
                assert json.loads(altered) == json.loads(data)
            else:
                found = safetensors.torch.load(altered)
                assert all(torch.equal(found[k], v) for k, v in TENSORS.items())


def test_sealed_values_come_back_and_sealed_tensors_stay_a_plain_safetensors_file(tmp_path: Path) -> None:
    value = {"tuple": (1, 2.5), 3: None, "text": "ä\n", "nested": {"sha": []}}
    assert integrity.open_json(integrity.seal_json(value, "a"), "x", "a") == json.loads(json.dumps(value))
    data = integrity.seal_tensors(safetensors.torch.save(TENSORS, {"about": "it"}))
    (tmp_path / "file").write_bytes(data)
    with safetensors.safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata()["about"] == "it"
        assert all(torch.equal(file.get_tensor(k), v) for k, v in TENSORS.items())
    assert integrity.seal_tensors(data) == data  # sealing again changes nothing


@pytest.mark.parametrize(
    "unsealed", [b"", b"{}", b"[]", b"nonsense", b'{"a": 1}', b"\x00" * 16, b"\xff" * 9, b"[" * 10**5]
)
def test_what_was_never_sealed_is_damaged(unsealed: bytes) -> None:
    for opened in (integrity.open_json, integrity.open_tensors):
        with pytest.raises(Damaged, match="its name is damaged"):
            opened(unsealed, "its name", None)
    with pytest.raises(Damaged):
        integrity.check_name("parts/no-hash.parquet", unsealed, "x")
    with pytest.raises(Damaged):
        integrity.open_tensors(safetensors.torch.save(TENSORS), "x")


def test_files_of_a_manifest_and_parts_of_a_commit_are_checked(tmp_path: Path) -> None:
    artifact = Artifact(Store(str(tmp_path)), "step", "0" * 12)
    table = pa.table({"a": [1, 2]})
    artifact.commit("s", parts=[artifact.write_part("s", table)])
    artifact.finish(files=artifact.write_file("t.parquet", table) | artifact.write_file("b", b"bytes"))
    assert artifact.read_shard("s") == table
    assert artifact.read_table("t.parquet", ["a"]) == table
    assert artifact.read_file("b") == b"bytes"
    for name in ("t.parquet", *artifact.read_commit("s")["parts"]):
        artifact.store.write_table(artifact.name(name), pa.table({"a": [1, 3]}))  # a whole file, but another one
    (tmp_path / artifact.folder / "b").unlink()
    for read in (
        lambda: artifact.read_shard("s"),
        lambda: artifact.read_table("t.parquet"),
        lambda: artifact.read_file("b"),
    ):
        with pytest.raises(Damaged, match=f"{artifact.folder}.*--repair"):
            read()
    with pytest.raises(Damaged):  # the manifest does not name it
        artifact.read_file("manifest.json")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def mix_up(path: Path) -> None:
    """Another whole file of the same storage lies in its place: one of the same kind where there is one."""
    alike = [p for p in path.parent.parent.parent.rglob(f"*{path.suffix}") if p.is_file()]
    alike.sort(key=lambda p: (p.parent != path.parent, p.name != path.name, p))
    path.write_bytes(next(p.read_bytes() for p in alike if p.read_bytes() != path.read_bytes()))


# A file of every kind that a step writes and a later one reads.
KINDS = (
    *("corpus-*/manifest.json", "corpus-*/shards/*", "features-*/commits/*", "features-*/parts/*"),
    *(
        "text-*/manifest.json",
        "text-*/text_features.safetensors",
        "pseudo_labels-*/commits/*",
        "pseudo_labels-*/parts/*",
    ),
    *("selection-*/manifest.json", "selection-*/selection.parquet", "views-*/manifest.json", "views-*/commits/*"),
    *("views-*/parts/*", "members-*/manifest.json", "members-*/prompts/*", "members-*/checkpoints/*"),
    *("members-*/history.parquet", "classifier-*/manifest.json", "classifier-*/classifier.safetensors"),
    *(
        "predictions-*/manifest.json",
        "predictions-*/commits/*",
        "predictions-*/parts/*",
        "predictions-*/rejected.parquet",
    ),
    *("scores-*/manifest.json", "analysis-*/selected.parquet", "thumbnails-*/sprites.parquet", "words-*/manifest.json"),
)


@pytest.fixture
def finished(short_run: dict[str, Any], short_world: Path, tmp_path: Path) -> Path:
    """A copy of the short run's storage."""
    return Path(shutil.copytree(short_run["storage"], tmp_path / "run"))


def test_a_storage_that_nobody_touched_is_whole(finished: Path) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    assert repair(Store(str(finished))) == []
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("spoil", [cut, flip, mix_up])
@pytest.mark.parametrize("kind", KINDS)
def test_repair_names_exactly_the_damaged_file(finished: Path, kind: str, spoil: Callable[[Path], None]) -> None:
    victim = sorted(finished.glob(kind))[0]
    spoil(victim)
    assert repair(Store(str(finished))) == [str(victim.relative_to(finished))]
    assert repair(Store(str(finished))) == []  # it is gone, or nothing names it any more


def same_results(one: Path, other: Path, rows: tuple[str, ...] = ("pseudo_labels", "selection", "predictions")) -> None:
    for step in rows:
        assert folders(one, step) == folders(other, step)
    for step in ("pseudo_labels", "predictions"):
        for folder in folders(one, step):
            assert committed_rows(one, folder).equals(committed_rows(other, folder))
    for folder in folders(one, "classifier"):
        assert np.array_equal(contexts(str(one / folder)), contexts(str(other / folder)))


def test_a_storage_with_a_damaged_file_of_every_kind_is_made_whole_again(
    cluster: None, finished: Path, short_world: Path, short_run: dict[str, Any]
) -> None:
    from upl_ray.pipeline import run

    for kind, spoil in zip(KINDS, [cut, flip, mix_up] * len(KINDS), strict=False):
        if kind != "corpus-*/manifest.json":  # its loss hides the others of the corpus
            spoil(sorted(finished.glob(kind))[-1])
    summary = run(job_config(short_world, finished, **SHORT, repair=True))
    assert summary["status"] == "done"
    assert repair(Store(str(finished))) == []
    same_results(finished, Path(short_run["storage"]))
    assert summary["scores"] == short_run["scores"]


@pytest.mark.slow
def test_a_damaged_feature_file_stops_the_job_with_its_name_and_is_never_used(
    cluster: None, finished: Path, short_world: Path
) -> None:
    from upl_ray.pipeline import run

    victim = sorted(finished.glob("features-*/parts/*"))[0]
    flip(victim)
    other = {**SHORT, "template": "a picture of {}."}  # needs the features again
    with pytest.raises(JobError, match=f"{victim.name} is damaged.*--repair") as error:
        run(job_config(short_world, finished, **other))
    assert "\n" not in str(error.value)
    assert run(job_config(short_world, finished, **other, repair=True))["status"] == "done"


def test_damaged_prompts_checkpoints_and_classifiers_are_never_used(finished: Path) -> None:
    (folder,) = folders(finished, "members")
    step, _, digest = folder.rpartition("-")
    for path in [*finished.glob("members-*/checkpoints/*"), *finished.glob("classifier-*/classifier.safetensors")]:
        flip(path)
    with pytest.raises(Damaged, match="member-01"):
        read_checkpoint(Artifact(Store(str(finished)), step, digest), 1)
    with pytest.raises(Damaged, match=r"classifier\.safetensors"):
        load_ensemble(str(finished / folders(finished, "classifier")[0]))


def test_files_that_were_mixed_up_are_never_used(finished: Path) -> None:
    store = Store(str(finished))
    shards, (views, *_) = Artifact(store, "step", "0" * 12), folders(finished, "views")
    for shard in ("A", "B"):
        shards.commit(shard, parts=[shards.write_part(shard, pa.table({"image_id": [shard]}))])
    shutil.copy(finished / shards.folder / "commits/B.json", finished / shards.folder / "commits/A.json")
    shutil.copy(finished / views / "manifest.json", finished / shards.folder)
    members = Artifact(store, *folders(finished, "members")[0].rsplit("-", 1))
    for kind in ("prompts", "checkpoints"):
        folder = finished / members.name(kind)
        shutil.copy(folder / "member-01.safetensors", folder / "member-00.safetensors")
    for read in (
        lambda: shards.read_shard("A"),
        shards.manifest,
        lambda: read_checkpoint(members, 0),
        lambda: read_members(members, Train(members=2)),
    ):
        with pytest.raises(Damaged, match="--repair"):
            read()
    assert shards.read_shard("B")["image_id"].to_pylist() == ["B"]


def test_a_classifier_may_leave_its_storage_but_not_change_places_with_another_one(finished: Path) -> None:
    classifier = finished / folders(finished, "classifier")[0]
    (finished / "alone").mkdir()
    shutil.copy(classifier / "classifier.safetensors", finished / "alone")
    ensemble = load_ensemble(str(finished / "alone"))
    assert np.array_equal(ensemble.ctx, load_ensemble(str(classifier)).ctx)
    tensors = {"text_features": ensemble.text_features, "ctx": -ensemble.ctx}
    other = safetensors.torch.save(tensors, {"upl_ray": json.dumps(ensemble.metadata)})
    (classifier / "classifier.safetensors").write_bytes(integrity.seal_tensors(other))
    with pytest.raises(Damaged, match=r"classifier\.safetensors"):
        load_ensemble(str(classifier))


def test_a_damaged_summary_or_report_stops_nothing(finished: Path) -> None:
    store, again = Store(str(finished)), write_report(Store(str(finished)))
    shutil.copy(finished / "run.json", finished / "whole.json")
    for spoil in (cut, flip):
        spoil(finished / "report/manifest.json")
        assert write_report(store) == again
        spoil(finished / "run.json")
        assert earlier_seconds(store) == {}
        with pytest.raises(ConfigError, match=r"run\.json is damaged, or .*run the job again"):
            write_report(store)
        with pytest.raises(ConfigError, match=r"run\.json is damaged; run the main job"):
            find_classifier(str(finished))
        shutil.copy(finished / "whole.json", finished / "run.json")


@pytest.mark.slow
def test_a_damaged_record_of_dropped_features_costs_its_shard_and_nothing_else(
    cluster: None, finished: Path, short_world: Path, short_run: dict[str, Any]
) -> None:
    from upl_ray.pipeline import run

    keep_none = {**SHORT, "keep_features": "none"}
    run(job_config(short_world, finished, **keep_none))
    assert not list(finished.glob("features-*/parts/*"))
    records = sorted(finished.glob("features-*/dropped/*"))
    cut(records[0])
    summary = run(job_config(short_world, finished, **keep_none, repair=True))
    assert summary["rejected"] == short_run["rejected"]
    assert sorted(finished.glob("features-*/dropped/*")) == records
    assert repair(Store(str(finished))) == []
    same_results(finished, Path(short_run["storage"]))


def test_repair_is_an_order_on_the_command_line(tmp_path: Path) -> None:
    demo = Path("jobs/demo.yaml")
    assert load_config(["jobs/demo.yaml", "--repair"], demo).repair
    assert load_config(["--repair", "--train.epochs", "3"], demo).repair
    assert not load_config(["--repair", "False"], demo).repair
    assert not load_config([], demo).repair
