"""What the fault matrix is made of: storages that lack a step, victims in Ray, and the proof that nothing was lost."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from s3_server import S3Server

from upl_ray.config.cli import run_job
from upl_ray.config.settings import Config, Predict
from upl_ray.pipeline.main import run
from upl_ray.pipeline.nightly import run as run_nightly
from upl_ray.storage.step import Step
from upl_ray.storage.store import Store

ROOT = Path(__file__).parents[2]
# Folders without which a storage has the step to do again, and after it little else.
REMADE = {
    "features": ("features", "pseudo_labels", "predictions"),
    "text": ("text", "pseudo_labels"),
    "labels": ("pseudo_labels",),
    "selection": ("selection",),
    "views": ("views",),
    "training": ("members", "classifier"),
    "predictions": ("predictions", "scores"),
    "nightly features": ("features", "predictions"),
    "nightly predictions": ("predictions",),
}
SHARDED = ("features", "pseudo_labels", "views", "predictions")
LASTING = ("/commits/", "/parts/", "/prompts/")  # what is never written again, once it is there


def lacking(step: str, finished: Path, storage: Path) -> Path:
    """A copy of a finished storage without the steps that a step makes."""
    gone = tuple(f"{name}-" for name in REMADE[step])
    shutil.copytree(
        finished,
        storage,
        ignore=lambda folder, names: [n for n in names if n.startswith(gone) and Path(folder) == finished],
        dirs_exist_ok=True,
    )
    return storage


def results(storage: str) -> dict[str, Any]:
    """Everything that images, labels and contexts are made of: rows by image id, tensors as bytes."""
    store, found = Store(storage), {}
    for folder in store.folders():
        name, _, digest = folder.rpartition("-")
        step = Step(store, name, digest)
        if name in SHARDED:
            found[folder] = _rows(step)
        elif name == "selection":
            found[folder] = step.read_table("selection.parquet").sort_by("image_id").to_pylist()
        elif name in ("text", "members", "classifier"):
            names = [n for n in store.names_below(folder) if n.endswith(".safetensors") and "checkpoints/" not in n]
            found[folder] = {n: _tensors(store.read(step.path(n))) for n in names}
    made = {folder.partition("-")[0] for folder, content in found.items() if content}
    assert made >= {"features", "predictions"}, made  # the nightly job makes no others
    return found


def _rows(step: Step) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for commit in step.read_commits(sorted(step.committed())):
        for part in commit["parts"]:
            for row in step.read_part(part).to_pylist():
                assert found.setdefault(row["image_id"], row) == row  # where it is there twice, it is the same twice
    return found


def _tensors(data: bytes) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in safetensors.torch.load(data).items()}


def lasting(storage: str, s3: S3Server) -> dict[str, str]:
    """Hash of each file in a storage that must stay as it is."""
    if storage.startswith("s3://"):
        bucket, _, prefix = storage.removeprefix("s3://").partition("/")
        pages = s3.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        files = {o["Key"]: o["ETag"] for page in pages for o in page.get("Contents", ())}
    else:
        paths = (p for p in Path(storage).rglob("*") if p.is_file() and p.suffix != ".tmp")
        files = {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    return {name: digest for name, digest in files.items() if any(kind in name for kind in LASTING)}


def attempt(config: Config | Predict) -> int:
    """Run a job in this process as its command does; returns the exit status."""
    before = signal.getsignal(signal.SIGTERM)

    def body() -> int:
        run(config) if isinstance(config, Config) else run_nightly(config)
        return 0

    try:
        return run_job(body)
    finally:
        signal.signal(signal.SIGTERM, before)


def driver(config: Config | Predict, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A job as a process of its own; its log lies in the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    script = "jobs/upl.py" if isinstance(config, Config) else "jobs/predict.py"
    with (folder / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, script, str(folder / "job.yaml")],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdout=log,
            stderr=log,
        )


def wait_for(job: subprocess.Popen[bytes], folder: Path, happened: Callable[[], Any]) -> None:
    """Wait for something that a job does."""
    deadline = time.monotonic() + 120
    while not happened():
        assert job.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """Processes that a process has started and that have not ended."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
    return found


def title(pid: int) -> str:
    """Command line of a process, which Ray's workers change to what they do; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def raylet() -> int:
    """The raylet of the cluster that this process has started; all its workers are its children."""
    (found,) = (pid for pid in children(os.getpid()) if "/raylet/raylet" in title(pid).split(" ")[0])
    return found


@contextmanager
def killer(victim: str, ready: Callable[[], Any] = lambda: True, times: int = 1) -> Iterator[list[str]]:
    """Kill so many workers whose title matches, when the moment has come; gives the titles of those killed."""
    killed: list[str] = []
    over, parent = threading.Event(), raylet()

    def hunt() -> None:
        while len(killed) < times and not over.wait(0.002):
            for pid in children(parent):
                name = title(pid)
                if re.search(victim, name) and ready():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(name)
                    break

    thread = threading.Thread(target=hunt)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@dataclass
class Cell:
    """One cell of the matrix, and what was seen of it."""

    fault: str
    step: str
    injected: int = 0
    stopped: int = 0  # runs that ended with a sentence
    kept: int = 0  # files that lay in storage when the fault was over, and do so unchanged at the end


@dataclass
class Matrix:
    """All cells that were green, for the table at the end."""

    cells: list[Cell] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The table."""
        faults = Counter(c.fault for c in self.cells)
        rows = [f"{c.fault:<28} {c.step:<22} {c.injected:>8} {c.stopped:>7} {c.kept:>5}" for c in self.cells]
        total = f"{len(self.cells)} cells of {len(faults)} faults, {sum(c.injected for c in self.cells)} injected"
        kept = f"{sum(c.kept for c in self.cells)} files kept as they were, 0 lost"
        return [f"{'fault':<28} {'step':<22} {'injected':>8} {'stopped':>7} {'kept':>5}", *rows, f"{total}; {kept}"]
