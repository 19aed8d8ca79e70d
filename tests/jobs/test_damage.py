"""Damaged files: each is found by name when it is read, and the file that the error says to delete brings it back."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from worlds import SHORT, committed_rows, contexts, folders, job_config

from upl_ray.errors import ConfigError, Damaged, JobError
from upl_ray.pipeline.classifier import find_classifier
from upl_ray.pipeline.summary import earlier_seconds
from upl_ray.report.page import write_report
from upl_ray.storage.step import Step, open_step
from upl_ray.storage.store import Store
from upl_ray.upl.ensemble import load_ensemble
from upl_ray.upl.tensors import load_tensors


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_text("{}")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_parts_and_files_are_checked_and_name_what_to_delete(tmp_path: Path) -> None:
    step = Step(Store(str(tmp_path)), "step", "0" * 12)
    table = pa.table({"a": [1, 2]})
    step.commit("s", parts=[step.write_part("s", table)])
    step.finish(files=step.write_file("t.parquet", table) | step.write_file("b", b"bytes"))
    assert step.read_shard("s") == table
    assert step.read_table("t.parquet", ["a"]) == table
    assert step.read_file("b") == b"bytes"
    for name in ("t.parquet", *step.read_commit("s")["parts"]):
        step.store.write_table(step.path(name), pa.table({"a": [1, 3]}))  # a whole file, but another one
    (tmp_path / step.folder / "b").unlink()
    for read, remedy in (
        (lambda: step.read_shard("s"), "commits/s.json"),
        (lambda: step.read_table("t.parquet"), "manifest.json"),
        (lambda: step.read_file("b"), "manifest.json"),
        (lambda: step.read_file("unnamed"), "manifest.json"),
    ):
        with pytest.raises(Damaged, match=rf"is damaged or gone\. Delete {step.uri}/{remedy} and run"):
            read()


@pytest.mark.parametrize("content", [b"", b"[]x", b"nonsense", b"\xff" * 9, b"[" * 10**5, b"7"])
def test_what_is_no_json_object_is_damaged(tmp_path: Path, content: bytes) -> None:
    store = Store(str(tmp_path))
    store.write("a.json", content)
    with pytest.raises(Damaged, match=r"a\.json is damaged or gone\. Delete it and run"):
        store.read_json("a.json")


@pytest.fixture
def finished(short_run: dict[str, Any], short_world: Path, tmp_path: Path) -> Path:
    """A copy of the short run's storage."""
    return Path(shutil.copytree(short_run["storage"], tmp_path / "run"))


def read_everything(storage: Path) -> Iterator[str]:
    """Errors of reading all that the steps of a storage name."""
    store = Store(str(storage))
    for folder in store.folders():
        step = open_step(store, folder)
        reads: list[Callable[[], Any]] = [step.find_manifest]
        reads += [lambda s=shard, step=step: step.read_shard(s) for shard in step.committed()]  # type: ignore[misc]
        if (storage / folder / "manifest.json").exists():
            files = re.findall(
                r'"([\w./-]+\.(?:parquet|safetensors))": "', (storage / folder / "manifest.json").read_text()
            )
            reads += [lambda f=f, step=step: step.read_file(f) for f in files]  # type: ignore[misc]
        reads += [
            lambda p=path: load_tensors(p.read_bytes(), str(p))  # type: ignore[misc]
            for path in (storage / folder).glob("*/*.safetensors")
        ]
        if step.name == "corpus":
            shards = [p.relative_to(storage) for p in (storage / folder).glob("shards/*")]
            reads += [lambda s=s: store.read_hashed(str(s)) for s in shards]  # type: ignore[misc]
        for read in reads:
            try:
                read()
            except Damaged as error:
                yield str(error)


# A file of every kind that a step writes and a later one reads.
HASHED = (
    *("corpus-*/shards/*", "features-*/parts/*", "text-*/text_features.safetensors", "pseudo_labels-*/parts/*"),
    *("selection-*/selection.parquet", "views-*/parts/*", "members-*/prompts/*", "members-*/checkpoints/*"),
    *("members-*/history.parquet", "classifier-*/classifier.safetensors", "predictions-*/parts/*"),
    *("snapshot-*/rejected.parquet", "scores-*/selected.parquet", "thumbnails-*/sprites.parquet"),
)
JSON = ("corpus-*/manifest.json", "features-*/commits/*", "views-*/manifest.json", "predictions-*/commits/*")

MANIFESTS = [
    f"{step}-*/manifest.json" for step in ("corpus", "selection", "views", "members", "classifier", "predictions")
]


def test_a_storage_that_nobody_touched_is_whole(finished: Path) -> None:
    assert list(read_everything(finished)) == []
    assert [kind for kind in (*HASHED, *JSON) if not list(finished.glob(kind))] == []


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [(k, s) for k in HASHED for s in (cut, flip)] + [(k, cut) for k in JSON] + [(k, empty) for k in MANIFESTS],
)
def test_a_damaged_file_is_found_by_name(finished: Path, kind: str, spoil: Callable[[Path], None]) -> None:
    victim = sorted(finished.glob(kind))[0]
    spoil(victim)
    found = list(read_everything(finished))
    assert found
    assert all(error.startswith(f"{victim} is damaged") for error in found)


@pytest.mark.faults
def test_deleting_what_the_errors_name_ends_as_if_nothing_had_happened(
    cluster: None, finished: Path, short_world: Path, short_run: dict[str, Any]
) -> None:
    from upl_ray.pipeline.main import run

    for kind in ("features-*/parts/*", "text-*/text_features.safetensors", "members-*/prompts/*", "corpus-*/shards/*"):
        flip(sorted(finished.glob(kind))[0])
    flip(sorted(finished.glob("views-*/parts/*"))[0])
    cut(sorted(finished.glob("views-*/commits/*"))[-1])
    for checkpoint in finished.glob("members-*/checkpoints/*"):  # so that a member is trained again from the views
        checkpoint.unlink()
    cut(sorted(finished.glob("features-*/commits/*"))[-1])
    for step in ("pseudo_labels", "predictions", "classifier"):  # so that they are made from what is damaged
        for folder in finished.glob(f"{step}-*"):
            shutil.rmtree(folder)
    deleted = []
    for _ in range(12):
        reason = ""
        try:
            summary = run(job_config(short_world, finished, **SHORT))
        except JobError as error:
            reason = str(error)
        if not reason:
            break
        found = re.search(r"^(\S+) is damaged or gone\. Delete (\S+) and run the job again", reason)
        assert found, reason
        victim = Path(found[1] if found[2] == "it" else found[2])
        victim.unlink()
        deleted.append(victim.name)
    assert run(job_config(short_world, finished, **SHORT))["status"] == "already done"
    assert len(deleted) == 6, deleted  # the two of views are one manifest
    assert summary["scores"] == short_run["scores"]
    for step in ("pseudo_labels", "predictions"):
        (ours,), (theirs,) = folders(finished, step), folders(short_run["storage"], step)
        assert committed_rows(finished, ours).equals(committed_rows(short_run["storage"], theirs))
    assert np.array_equal(contexts(summary["classifier"]), contexts(short_run["classifier"]))


def test_what_is_gone_from_a_finished_run_is_made_again(
    cluster: None, finished: Path, short_world: Path, short_run: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    from upl_ray.pipeline.main import run

    gone = ("classifier-*/classifier.safetensors", "predictions-*/parts/*", "scores-*/*.parquet")
    for kind in gone:
        sorted(finished.glob(kind))[0].unlink()
    shard = sorted(finished.glob("features-*/commits/*"))[0].stem
    for kind in ("text-*/text_features.safetensors", "pseudo_labels-*/parts/*", f"features-*/parts/{shard}-*"):
        for path in finished.glob(kind):
            path.unlink()
    cut(finished / "report/index.html")
    with pytest.raises(
        ConfigError, match=r"There is no classifier at .*classifier\.safetensors .* is gone; its job makes"
    ):
        find_classifier(str(finished))
    summary = run(job_config(short_world, finished, **SHORT))
    assert (summary["status"], summary["scores"]) == ("done", short_run["scores"])
    lost = {r.args[1].split("-")[0] for r in caplog.records if "gone from storage" in r.message}  # type: ignore[index,union-attr]
    assert lost == {"classifier", "predictions", "features", "scores", "text", "pseudo_labels"}
    assert run(job_config(short_world, finished, **SHORT))["status"] == "already done"
    assert list(read_everything(finished)) == []
    assert (finished / "report/index.html").read_text().rstrip().endswith("</html>")
    for step in ("pseudo_labels", "predictions", "features"):
        (ours,), (theirs,) = folders(finished, step), folders(short_run["storage"], step)
        assert committed_rows(finished, ours).equals(committed_rows(short_run["storage"], theirs))
    assert np.array_equal(contexts(summary["classifier"]), contexts(short_run["classifier"]))


def test_a_shard_without_any_image_is_not_lost(tmp_path: Path) -> None:
    step = Step(Store(str(tmp_path)), "step", "0" * 12)
    step.commit("empty", parts=[], rejected={"a.jpg": "no image"})
    step.commit("whole", parts=[step.write_part("whole", pa.table({"a": [1]}))])
    step.commit("half", parts=[step.write_part("half", pa.table({"a": [i]})) for i in range(2)])
    assert step.forget_lost() == []
    for part in step.read_commit("half")["parts"]:
        (tmp_path / step.folder / part).unlink()
    assert len(step.forget_lost()) == 2
    assert step.committed() == {"empty", "whole"}


def test_what_is_gone_is_named_where_nothing_may_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a role of S3 that may only write."""
    step = Step(Store(str(tmp_path)), "step", "0" * 12)
    step.commit("s", parts=[step.write_part("s", pa.table({"a": [1]}))])
    step.finish(files=step.write_file("t", b"t"))

    def refuse(store: Store, name: str) -> None:
        raise PermissionError(13, "ACCESS_DENIED", name)

    monkeypatch.setattr(Store, "delete", refuse)
    for lost, declaration in (("t", "manifest.json"), (step.read_commit("s")["parts"][0], "commits/s.json")):
        (tmp_path / step.folder / lost).unlink()
        with pytest.raises(Damaged, match=rf"{lost} is damaged or gone\. Delete .*{declaration} and run the job again"):
            step.forget_lost()
        step.write_file("t", b"t")


def test_a_classifier_may_leave_its_storage(finished: Path) -> None:
    classifier = finished / folders(finished, "classifier")[0]
    (finished / "alone").mkdir()
    shutil.copy(classifier / "classifier.safetensors", finished / "alone")
    alone = load_ensemble(str(finished / "alone"))
    assert np.array_equal(alone.ctx, load_ensemble(str(classifier)).ctx)
    assert np.array_equal(alone.ctx, load_ensemble(str(finished)).ctx)  # by the run's storage
    flip(classifier / "classifier.safetensors")
    with pytest.raises(Damaged, match=r"classifier\.safetensors"):
        load_ensemble(str(classifier))


def test_a_damaged_summary_or_report_stops_nothing(finished: Path) -> None:
    store, again = Store(str(finished)), write_report(Store(str(finished)))
    shutil.copy(finished / "run.json", finished / "whole.json")
    cut(finished / "report/manifest.json")
    assert write_report(store) == again
    (finished / "report/manifest.json").write_text("{}")
    assert write_report(store) == again
    cut(finished / "run.json")
    assert earlier_seconds(store) == {}
    with pytest.raises(ConfigError, match=r"run\.json is damaged, or .*run the job again"):
        write_report(store)
    with pytest.raises(ConfigError, match=r"run\.json is damaged or gone\. Delete it"):
        find_classifier(str(finished))
    shutil.copy(finished / "whole.json", finished / "run.json")
