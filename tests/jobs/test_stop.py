import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from worlds import SHORT, committed_rows, contexts, folders, job_config

from upl_ray.pipeline.main import run

ROOT = Path(__file__).parents[2]


def start(config_file: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "jobs/upl.py", str(config_file)]
    with log.open("w") as file:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),  # under nohup it is ignored
        )


def stop_when(job: subprocess.Popen[bytes], log: Path, storage: Path, pattern: str, number: signal.Signals) -> None:
    """When a file is there, send SIGTERM to the driver alone or, as a terminal does, SIGINT to its group."""
    deadline = time.monotonic() + 300
    while not list(storage.glob(pattern)):
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    started = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(job.pid, number)
    else:
        job.send_signal(number)
    assert job.wait(timeout=60) == 128 + number, log.read_text()
    print(f"stopped {time.monotonic() - started:.1f} s after {number.name}, at the first {pattern}")


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), pytest.param(signal.SIGINT, marks=pytest.mark.faults)],
)
def test_a_job_that_is_stopped_ends_with_a_word_and_the_next_run_ends_as_if_undisturbed(
    cluster: None, short_run: dict[str, Any], short_world: Path, tmp_path: Path, number: signal.Signals
) -> None:
    storage, log = tmp_path / "storage", tmp_path / "log"
    config = job_config(short_world, storage, **SHORT)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    for pattern in ("features-*/commits/*", "members-*/checkpoints/*"):
        job = start(tmp_path / "job.yaml", log)
        stop_when(job, log, storage, pattern, number)
        lines = log.read_text().splitlines()
        assert json.loads(lines[-1])["status"] == "stopped"
        assert "Traceback" not in log.read_text()
        assert not any(Path(f"/proc/{pid}").exists() for pid in in_session(job.pid))
    assert not folders(storage, "classifier")
    summary = run(config)
    assert np.array_equal(contexts(summary["classifier"]), contexts(short_run["classifier"]))
    for step in ("pseudo_labels", "predictions"):
        (ours,), (theirs,) = folders(storage, step), folders(short_run["storage"], step)
        assert committed_rows(storage, ours).equals(committed_rows(short_run["storage"], theirs))


@pytest.mark.parametrize(
    ("number", "connecting"),
    [(signal.SIGTERM, False), (signal.SIGHUP, False), pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow)],
)
def test_a_job_that_is_stopped_while_ray_starts_ends_with_a_word(
    short_world: Path, tmp_path: Path, number: signal.Signals, connecting: bool
) -> None:
    """At the first process of Ray, and while the driver connects, which is when C++ objects are half built."""
    config = job_config(short_world, tmp_path / "storage", **SHORT)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    job = start(tmp_path / "job.yaml", tmp_path / "log")
    deadline = time.monotonic() + 100
    while len(in_session(job.pid)) < 2 or (connecting and "logging.cc" not in (tmp_path / "log").read_text()):
        assert job.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(number)
    assert job.wait(timeout=60) == 128 + number, (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "log").read_text().splitlines()[-1])["status"] == "stopped"
    assert "Traceback" not in (tmp_path / "log").read_text()
    # Workers that were just starting give up a minute after their raylet has died with the driver.
    deadline = time.monotonic() + 200
    while left := in_session(job.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def in_session(leader: int) -> list[int]:
    """Processes of the job that are still there: nothing of Ray outlives it."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[3] == str(leader) and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
