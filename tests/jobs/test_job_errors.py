"""Faults that no rerun inside the job cures: it ends with one sentence, and the next run goes on."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from s3_server import S3Server
from worlds import SHORT, job_config

from upl_ray.cluster.connect import job_error_in
from upl_ray.config.cli import run_job
from upl_ray.corpus.read import read_images
from upl_ray.corpus.shards import list_corpus
from upl_ray.errors import JobError, describe_storage_error
from upl_ray.storage.store import Store, damaged

ROOT = Path(__file__).parents[2]


def raised_in_tasks(error: BaseException) -> list[BaseException]:
    """The error as Ray Data raises it, and as a plain task does: an instance of its class, too."""

    def fail(row: dict[str, Any]) -> dict[str, Any]:
        raise error

    with pytest.raises(ray.exceptions.RayError) as of_data:
        ray.data.from_items([{"x": 1}]).map(fail).take_all()
    with pytest.raises(ray.exceptions.RayError) as of_task:
        ray.get(ray.remote(fail).remote({}))
    return [of_data.value, of_task.value]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (JobError("No GPU is there; add one."), "No GPU is there; add one."),
        (damaged("run/x"), str(damaged("run/x"))),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            describe_storage_error("[Errno 28] No space left on device"),
        ),
        (
            OSError("AWS Error SLOW_DOWN during PutObject"),
            describe_storage_error("AWS Error SLOW_DOWN during PutObject"),
        ),
        (TimeoutError("no answer"), describe_storage_error("no answer")),
    ],
)
def test_what_a_task_says_becomes_the_jobs_sentence(cluster: None, error: BaseException, sentence: str) -> None:
    assert [job_error_in(e) for e in raised_in_tasks(error)] == [sentence] * 2


def test_a_mistake_in_the_program_keeps_its_traceback(cluster: None) -> None:
    assert [job_error_in(e) for e in raised_in_tasks(KeyError("x"))] == [""] * 2
    assert job_error_in(ValueError("x")) == ""


def test_a_storage_error_of_the_driver_is_one_sentence_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "run/x")

    assert run_job(job) == 1
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "No space left on device" in told.err
    assert '"status": "failed"' in told.out


@pytest.mark.parametrize(
    ("body", "error", "status", "traceback"),
    [
        ("raise ConfigError('storage_path: it is bad.')", "storage_path: it is bad.", 2, False),
        ("raise JobError('No GPU is there.')", "No GPU is there.", 1, False),
        ("raise KeyboardInterrupt", "stopped by a signal", 130, False),
        ("raise ValueError('one\\ntwo\\nthree')", "unexpected ValueError: one ... three", 1, True),
        ("raise SystemExit(2)", "the command line is refused", 2, False),
        ("import ray; ray.init = None; ray.init()", "unexpected TypeError: 'NoneType'", 1, True),
    ],
)
def test_however_a_job_fails_its_last_line_is_json(body: str, error: str, status: int, traceback: bool) -> None:
    code = (
        "import sys; from upl_ray.config.cli import *; from upl_ray.errors import ConfigError, JobError\n"
        f"def job():\n    {body}\nsys.exit(run_job(job))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == status
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["status"] == ("stopped" if status == 130 else "failed")
    assert last["error"].startswith(error)
    assert ("Traceback" in done.stdout) == traceback


def test_images_without_permission_stop_the_job_and_are_no_rejections(s3: S3Server, tmp_path: Path) -> None:
    """By S3's answer: whoever runs the tests may be root, whom a file's mode does not keep out."""
    strict = S3Server(tmp_path / "requests", check_credentials=True)
    try:
        code = (
            "import sys, pyarrow as pa; from upl_ray.corpus.read import read_images; "
            "from upl_ray.storage.schema import LISTING\n"
            "row = {n: None for n in LISTING.names} | {'image_id': 'a', 'version': '1-1', 'file': 'a.png'}\n"
            "try: read_images('s3://bucket/images', pa.Table.from_pylist([row], schema=LISTING))\n"
            "except Exception as error: print(type(error).__name__, error)"
        )
        environment = {**os.environ, **strict.environment(), "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    finally:
        strict.stop()
    assert done.stdout.startswith("JobError Images under s3://bucket/images cannot be read now"), done.stdout
    assert done.stdout.rstrip().endswith("run the job again.")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_stops_the_job(short_world: Path, tmp_path: Path) -> None:
    config = job_config(short_world, tmp_path / "run", **SHORT)
    corpus = list_corpus(Store(str(tmp_path / "run")), config.corpus, 100)
    victim = next(p for p in (short_world / "corpus").rglob("*.png") if p.stat().st_size)
    victim.chmod(0)
    try:
        with pytest.raises(JobError, match="no permission"):
            read_images(corpus.shards[0].root, corpus.listing(corpus.shards[0]))
    finally:
        victim.chmod(0o644)
