"""The fault matrix: whatever is killed, refused, cut or full in a step, the next run ends as if nothing had happened.

A cell is a fault in a step. Its job either goes on, or stops with one sentence and goes on when it is run again; either
way everything in storage equals an undisturbed run's bit for bit, and no file that was committed is lost or changed.

`make test-slow` runs the cells that are named in IN_GATE: every fault, and every step several times. `make test-faults`
runs the others.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from faults import Cell, Matrix, attempt, driver, killer, lacking, lasting, results, wait_for
from faulty_proxy import FaultyProxy, Rule
from s3_server import S3Server
from worlds import SHORT, job_config

from upl_ray.config.settings import Config, Predict
from upl_ray.pipeline.nightly import run as run_nightly

ENCODER, TRIAL, TASK = r"^ray::MapWorker\(Map\(Encoder", r"^ray::trial ", r"^ray::Map\(process"
KILLS = (
    *[("features", ENCODER), ("features", r"^ray::FlatMap\(ChunkDecoder"), ("features", r"write_features")],
    *[("text", r"^ray::_encode"), ("labels", TASK), ("selection", r"^ray::MapBatches\(reduce")],
    *[("views", ENCODER), ("views", r"^ray::FlatMap\(crop"), ("views", r"write_views")],
    *[("training", TRIAL), ("predictions", TASK)],
    *[("nightly features", ENCODER), ("nightly features", r"ChunkDecoder"), ("nightly predictions", TASK)],
)
# The first file that each step writes.
FIRST = {
    "features": "features-*/parts/*",
    "text": "text-*/text_features.safetensors",
    "labels": "pseudo_labels-*/commits/*",
    "selection": "selection-*/selection.parquet",
    "views": "views-*/parts/*",
    "training": "members-*/checkpoints/*",
    "predictions": "predictions-*/commits/*",
    "nightly features": "features-*/parts/*",
    "nightly predictions": "predictions-*/commits/*",
}
WRITES = {step: f"/{pattern.split('*')[0]}" for step, pattern in FIRST.items()}
READS = {
    "labels": "/features-",
    "selection": "/pseudo_labels-",
    "training": "/views-",
    "predictions": "/classifier-",
    "nightly predictions": "/features-",
}
PASSING = (  # faults of storage that pass: of each kind some, in each step several
    *[("PUT", s, "slow down") for s in ("features", "views", "predictions")],
    *[("PUT", s, "internal error") for s in ("text", "training")],
    *[("PUT", s, "cut upload") for s in ("features", "labels", "training", "nightly predictions")],
    *[("PUT", s, "silence") for s in ("selection", "predictions")],
    *[("GET", s, "cut answer") for s in ("labels", "selection", "training", "predictions", "nightly predictions")],
    *[("GET", s, "wrong length") for s in ("labels", "training")],
    *[("GET", s, "trickle") for s in ("selection", "predictions")],
)

IN_GATE = {
    *[("features", ENCODER), ("views", ENCODER), ("training", TRIAL)],
    *[("driver", s) for s in ("features", "nightly predictions")],
    ("drivers", "training"),
    *[("PUT", "features", "slow down"), ("PUT", "text", "internal error"), ("PUT", "training", "cut upload")],
    *[("PUT", "selection", "silence"), ("GET", "labels", "cut answer"), ("GET", "training", "wrong length")],
    ("GET", "predictions", "trickle"),
    *[("nightly features", "denied"), ("labels", "slow down")],
    ("disk", "training"),
    ("training", "-400d"),
    ("half", "predictions"),
}
EVERY: set[tuple[str, ...]] = set()


def cells(every: Iterable[Any], *kind: str) -> list[Any]:
    """Parameters of a test, marked by where they run."""
    rows = [cell if isinstance(cell, tuple) else (cell,) for cell in every]
    EVERY.update((*kind, *row) for row in rows)
    return [pytest.param(*r, marks=pytest.mark.slow if (*kind, *r) in IN_GATE else pytest.mark.faults) for r in rows]


@dataclass(frozen=True)
class Scene:
    """Undisturbed runs, and copies of their storages that lack a step."""

    world: Path
    main: Path
    nightly: Path
    s3: S3Server
    bucket: str
    matrix: Matrix

    def finished(self, step: str) -> Path:
        """Storage of the undisturbed run."""
        return self.nightly if step.startswith("nightly") else self.main

    def config(self, step: str, storage: Path | str, **compute: Any) -> Config | Predict:
        """The job that does a step."""
        compute = SHORT["compute"] | compute
        if not step.startswith("nightly"):
            return job_config(self.world, storage, **{**SHORT, "compute": compute})
        return nightly_job(self.world, self.main, storage, compute)

    def upload(self, step: str, folder: Path) -> str:
        """A storage in S3 that lacks a step."""
        self.s3.upload(lacking(step, self.finished(step), folder), self.bucket, folder.parent.name)
        return f"s3://{self.bucket}/{folder.parent.name}"

    def check(self, cell: Cell, storage: Path | str, status: int, said: str) -> None:
        """What was said, the rest of the work, and the proof."""
        assert cell.injected, "the fault never struck"
        assert status in (0, 1, 2)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == (status != 0), said
        cell.stopped += status != 0
        before = lasting(str(storage), self.s3)
        assert attempt(self.config(cell.step, storage)) == 0
        after = lasting(str(storage), self.s3)
        assert {name: after.get(name) for name in before} == before
        assert results(str(storage)) == results(str(self.finished(cell.step)))
        cell.kept = len(before)
        self.matrix.cells.append(cell)


def nightly_job(world: Path, classifier: Path, storage: Path | str, compute: dict[str, Any]) -> Predict:
    source = {"uri": str(world / "corpus")}
    data = {"classifier": str(classifier), "corpus": source, "max_rejected": 0.1, "compute": compute}
    return Predict.model_validate(data | {"storage_path": str(storage)})


@pytest.fixture(scope="module")
def scene(
    request: pytest.FixtureRequest,
    s3: S3Server,
    short_world: Path,
    short_run: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scene]:
    main, nightly = Path(short_run["storage"]), tmp_path_factory.mktemp("nightly")
    run_nightly(nightly_job(short_world, main, nightly, SHORT["compute"]))
    matrix = Matrix()
    yield Scene(short_world, main, nightly, s3, s3.create_bucket(), matrix)
    plugins = request.config.pluginmanager
    terminal, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled():
        terminal.ensure_newline()
        for line in matrix.lines():
            terminal.write_line(line)


@pytest.mark.parametrize(("step", "victim"), cells(KILLS))
def test_a_killed_worker(
    scene: Scene, capfd: pytest.CaptureFixture[str], tmp_path: Path, step: str, victim: str
) -> None:
    storage = lacking(step, scene.finished(step), tmp_path / "storage")
    working = step in ("features", "views", "training") and victim in (ENCODER, TRIAL)
    capfd.readouterr()
    with killer(victim, lambda: not working or any(storage.glob(FIRST[step]))) as killed:
        status = attempt(scene.config(step, storage))
    name = "killed " + victim.strip("^").removeprefix("ray::").replace("\\", "")
    scene.check(Cell(name, step, len(killed)), storage, status, capfd.readouterr().err)


@pytest.mark.parametrize("step", cells(FIRST, "driver"))
def test_a_killed_driver(scene: Scene, cluster: None, tmp_path: Path, step: str) -> None:
    storage = lacking(step, scene.finished(step), tmp_path / "storage")
    address = ray.get_runtime_context().gcs_address
    job = driver(scene.config(step, storage, ray_address=address), tmp_path / "job")
    wait_for(job, tmp_path / "job", lambda: any(storage.glob(FIRST[step])))
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    scene.check(Cell("killed driver", step, 1), storage, 0, "")


@pytest.mark.parametrize("step", cells(["features", "training", "nightly features"], "drivers"))
def test_two_drivers_at_once(scene: Scene, capfd: pytest.CaptureFixture[str], tmp_path: Path, step: str) -> None:
    storage = lacking(step, scene.finished(step), tmp_path / "storage")
    address = ray.get_runtime_context().gcs_address
    other = driver(scene.config(step, storage, ray_address=address), tmp_path / "job")
    wait_for(other, tmp_path / "job", lambda: any(storage.glob(FIRST[step])))
    capfd.readouterr()
    status = attempt(scene.config(step, storage))
    said = capfd.readouterr().err
    assert other.wait(timeout=120) == 0, (tmp_path / "job" / "log").read_text()
    scene.check(Cell("two drivers", step, 1), storage, status, said)


@pytest.mark.parametrize(("method", "step", "fault"), cells(PASSING))
def test_a_fault_of_storage_that_passes(
    scene: Scene,
    proxy: FaultyProxy,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    method: str,
    step: str,
    fault: str,
) -> None:
    storage = scene.upload(step, tmp_path / "storage")
    capfd.readouterr()
    with proxy.faulty(Rule(method, (WRITES if method == "PUT" else READS)[step], fault, 2)) as injected:
        status = attempt(scene.config(step, storage))
    scene.check(Cell(f"{method}: {fault}", step, injected.total()), storage, status, capfd.readouterr().err)


@pytest.mark.parametrize(
    ("step", "fault"),
    cells([*((step, "denied") for step in FIRST), ("labels", "slow down"), ("training", "slow down")]),
)
def test_a_fault_of_storage_that_stays(
    scene: Scene, proxy: FaultyProxy, capfd: pytest.CaptureFixture[str], tmp_path: Path, step: str, fault: str
) -> None:
    storage = scene.upload(step, tmp_path / "storage")
    capfd.readouterr()
    with proxy.faulty(Rule("PUT", WRITES[step], fault, float("inf"))) as injected:
        status = attempt(scene.config(step, storage))
    assert status == 1
    scene.check(Cell(f"PUT: {fault}, for ever", step, injected.total()), storage, status, capfd.readouterr().err)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory; a test makes it small."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a full disk needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("step", cells(FIRST, "disk"))
def test_a_full_disk(scene: Scene, capfd: pytest.CaptureFixture[str], small_disk: Path, step: str) -> None:
    def resize(size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(small_disk)], check=True)

    storage = lacking(step, scene.finished(step), small_disk / "storage")
    used = int(subprocess.run(["du", "-sB1", str(small_disk)], capture_output=True, check=True).stdout.split()[0])
    resize(used + 2**12)  # a page: less than any step writes
    capfd.readouterr()
    status = attempt(scene.config(step, storage))
    resize(2**26)
    assert status == 1
    scene.check(Cell("full disk", step, 1), storage, status, capfd.readouterr().err)


@pytest.mark.parametrize(
    ("step", "clock"), cells([("features", "+400d"), ("training", "-400d"), ("training", "+400d")])
)
def test_a_clock_that_jumps(scene: Scene, tmp_path: Path, step: str, clock: str) -> None:
    """A job on a Ray cluster of its own, all in another year, is killed; the next one has today's clock."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip("a clock that jumps needs faketime (a Debian package)")
    storage = lacking(step, scene.finished(step), tmp_path / "storage")
    faked = {"LD_PRELOAD": str(library), "FAKETIME": clock, "NO_FAKE_STAT": "1"}  # files keep their times
    job = driver(scene.config(step, storage), tmp_path / "job", **faked)
    wait_for(job, tmp_path / "job", lambda: any(storage.glob(FIRST[step])))
    job.send_signal(signal.SIGKILL)
    job.wait()
    scene.check(Cell(f"clock {clock}, then killed", step, 1), storage, 0, "")


@pytest.mark.parametrize("step", cells(["features", "selection", "training", "predictions"], "half"))
def test_half_written_files(scene: Scene, tmp_path: Path, step: str) -> None:
    """Uploads that never completed and temporary files of a killed writer are nothing to a reader."""
    local = lacking(step, scene.finished(step), tmp_path / "storage")
    remote = scene.upload(step, tmp_path / f"remote-{step}" / "storage")
    finished, names = scene.finished(step), []
    for path in finished.glob(f"{WRITES[step].strip('/')}*/manifest.json"):
        name, half = str(path.relative_to(finished)), path.read_bytes()[: path.stat().st_size // 2]
        (local / name).parent.mkdir()
        (local / f"{name}.0123.tmp").write_bytes(half)
        client, place = scene.s3.client(), {"Bucket": scene.bucket, "Key": f"remote-{step}/{name}"}
        upload = client.create_multipart_upload(**place)["UploadId"]
        client.upload_part(**place, PartNumber=1, UploadId=upload, Body=half)
        names.append(name)
    for storage in (str(local), remote):
        kind = "upload" if storage == remote else "file"
        scene.check(Cell(f"half written {kind}", step, len(names)), storage, 0, "")


@pytest.mark.slow
def test_the_cells_of_the_gate_exist() -> None:
    assert IN_GATE <= EVERY
