"""Storage: whole files or none, on a local folder and on an S3 server; steps that are done when their manifest is."""

import errno
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from upl_ray.errors import JobError
from upl_ray.storage.step import Step, fingerprint, open_step
from upl_ray.storage.store import Store


@pytest.fixture(params=["local", "s3", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind: a folder, a bucket's prefix through pyarrow, and a file system of fsspec's."""
    if request.param == "local":
        return Store(str(tmp_path / "run"))
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}/run")
    return Store(f"s3://{request.getfixturevalue('s3').create_bucket()}/some/run")


def test_files_come_back_as_they_were_written(store: Store) -> None:
    contents = {"a": b"", "b/c/d.bin": bytes(range(256)) * 4000, "b/é ü.txt": "größer".encode()}
    for name, data in contents.items():
        store.write(name, data)
    assert {name: store.read(name) for name in contents} == contents
    store.write("a", b"again")
    assert store.read("a") == b"again"


def test_names_are_the_sorted_files_right_in_a_folder(store: Store) -> None:
    for name in ("x/b", "x/a", "x/B", "x/y/c", "z"):
        store.write(name, b"1")
    assert store.names("x") == ["B", "a", "b"]
    assert store.names("x/y") == ["c"]
    assert store.names("nothing/there") == []


def test_what_is_missing_raises_file_not_found(store: Store) -> None:
    store.write("x/a", b"1")
    for name in ("b", "x/b", "y/a"):
        with pytest.raises(FileNotFoundError):
            store.read(name)
        with pytest.raises(FileNotFoundError):
            store.read_json(name)
        with pytest.raises(FileNotFoundError):
            store.read_table(name)


def test_tables_and_json_come_back(store: Store) -> None:
    half = pa.FixedSizeListArray.from_arrays(pa.array([0.5, 1, -2, 3], pa.float32()).cast(pa.float16()), 2)
    table = pa.table({"image_id": ["a", "b/é"], "features": half, "labels": [[1, 2], []]})
    store.write_table("t.parquet", table)
    assert store.read_table("t.parquet").equals(table)
    assert store.read_table("t.parquet", ["labels"]).column_names == ["labels"]
    value = {"b": [1, 2.5, None, True], "a": {"é": "x"}}
    store.write_json("v.json", value)
    assert store.read_json("v.json") == value


def test_uris_and_relative_names(store: Store) -> None:
    store.write("a/b.txt", b"1")
    assert Store(store.join("a")).read("b.txt") == b"1"
    assert Store(store.uri + "/").read("a/b.txt") == b"1"
    assert store.join("a/b.txt") == f"{store.uri}/a/b.txt"


def test_a_local_write_that_was_killed_half_way_is_invisible(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("commits/a.json", b"{}")
    (tmp_path / "commits" / "b.json.0123abcd.tmp").write_bytes(b"{ha")
    (tmp_path / "s-1").mkdir()
    (tmp_path / "s-1" / "manifest.json.0123abcd.tmp").write_bytes(b"{")
    assert store.names("commits") == ["a.json"]
    assert not Step(store, "s", "1").finished
    assert sorted(p.name for p in tmp_path.glob("commits/*.json")) == ["a.json"]
    store.write("commits/b.json", b"{}")
    assert store.names("commits") == ["a.json", "b.json"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        store.write("folder", b"x")
    with pytest.raises(OSError, match="No space"), store.open_text("a.csv") as text:  # noqa: PT012
        text.write("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_step_is_done_when_its_manifest_is_there(store: Store) -> None:
    step = Step(store, "features-RN50", fingerprint({"a": 1}))
    assert not step.finished
    store.write(step.path("parts/x"), b"1")
    assert not step.finished
    written = step.finish(images=3, parts=["x"])
    found = step.manifest()
    assert found == written
    assert found["images"] == 3
    assert (found["step"], found["fingerprint"]) == ("features-RN50", step.fingerprint)
    assert step.uri == f"{store.uri}/features-RN50-{step.fingerprint}"
    assert not Step(store, "features-RN50", fingerprint({"a": 2})).finished


def test_only_committed_parts_are_read(store: Store) -> None:
    step = Step(store, "labels", "0" * 12)
    assert step.committed() == set()
    rows = pa.table({"image_id": ["a", "b"]})
    lost = step.write_part("s1", pa.table({"image_id": ["from a killed run"]}))
    kept = [step.write_part("s1", rows.slice(i, 1)) for i in range(2)]
    assert len({lost, *kept}) == 3
    step.commit("s1", parts=kept, rows=2)
    step.commit("s2", parts=[], rows=0)
    assert step.committed() == {"s1", "s2"}
    assert step.read_shard("s1").equals(rows)
    assert list(step.read_commits(["s2", "s1"])) == [{"parts": [], "rows": 0}, {"parts": kept, "rows": 2}]
    with pytest.raises(FileNotFoundError):
        step.read_commit("s3")


def test_the_identity_of_a_step_is_its_version_its_inputs_and_what_it_reads(tmp_path: Path) -> None:
    def made(version: int = 1, inputs: dict[str, Any] | None = None, needs: tuple[Step, ...] = ()) -> str:
        return Step.of(Store(str(tmp_path)), "s", version=version, inputs=inputs or {"a": 1}, needs=needs).fingerprint

    upstream = [Step(Store(str(tmp_path)), "other", digit * 12) for digit in "01"]
    found = [made(), made(2), made(inputs={"a": 2}), made(needs=(upstream[0],)), made(needs=(upstream[1],))]
    assert len(set(found)) == len(found)
    assert made() == found[0]
    step = Step.of(Store(str(tmp_path)), "with-dash", version=1, inputs={})
    assert open_step(step.store, step.folder) == step
    with pytest.raises(JobError, match="is not finished; run the job again"):
        step.manifest()


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    a = {"x": 1, "y": {"b": [1, 2], "a": None}}
    b = {"y": {"a": None, "b": [1, 2]}, "x": 1}
    assert fingerprint(a) == fingerprint(b) == fingerprint(a)
    assert len(fingerprint(a)) == 12


def test_fingerprints_tell_values_apart() -> None:
    values = [None, True, "True", 1, "1", 1.5, [], {}, [1], [[1]], {"1": 1}, [1, 2], [2, 1], "é", "e", 0, False, ""]
    assert len({fingerprint(v) for v in values}) == len(values)


@pytest.mark.parametrize("value", [object(), Path("x"), {1, 2}, b"x", float("nan"), float("inf"), {"a": [print]}])
def test_values_without_a_stable_identity_are_refused(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        fingerprint(value)
    with pytest.raises((TypeError, ValueError)):
        fingerprint({"nested": [value]})


def test_fingerprints_are_the_same_in_every_release() -> None:
    assert fingerprint({"version": 1, "name": "é", "list": [1, 2.5, None, True]}) == "9b109f0bfe93"
