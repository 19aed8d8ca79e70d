"""Secrets of the environment, planted before real runs on S3, are looked for in all that the runs leave behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from s3_server import S3Server
from worlds import SHORT, job_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PLANTED = {name: f"planted-{name.lower()}-7Qz" for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")}


@pytest.fixture
def session_folder() -> Iterator[Path]:
    """Where Ray keeps its logs; its sockets need a short path."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def family(parent: int) -> Iterator[int]:
    """A process and everything it has started."""
    yield parent
    tasks = Path(f"/proc/{parent}/task")
    for task in tasks.iterdir() if tasks.is_dir() else ():
        try:
            children = (task / "children").read_text().split()
        except OSError:  # it has ended in between
            continue
        for child in children:
            yield from family(int(child))


def told(place: Path) -> bytes:
    """What a file of /proc says, or nothing where the process has ended."""
    try:
        return place.read_bytes()
    except OSError:
        return b""


def run_job(session: Path, *command: str, **environment: str) -> tuple[int, bytes, set[bytes], int]:
    """Exit status, output, all command lines of its processes, and how many of these had a secret to tell."""
    inherited = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    given = {**inherited, **PLANTED, "RAY_TMPDIR": str(session), "PYTHONPATH": str(ROOT), **environment}
    with (session / "output").open("ab") as output:
        job = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=given, stdout=output, stderr=output)
        lines: set[bytes] = set()
        knowing: set[int] = set()
        while job.poll() is None:
            for process in family(job.pid):
                lines.add(told(Path(f"/proc/{process}/cmdline")))
                if PLANTED["HF_TOKEN"].encode() in told(Path(f"/proc/{process}/environ")):
                    knowing.add(process)
            time.sleep(0.2)
    return job.returncode, (session / "output").read_bytes(), lines, len(knowing)


def secrets_in(data: bytes) -> list[str]:
    """Which secrets stand in some bytes; of Parquet, also compressed ones."""
    if data[:4] == b"PAR1":
        table = pq.read_table(pa.BufferReader(data))
        data += repr(table.to_pydict()).encode() + repr(table.schema.metadata).encode()
    return [name for name, value in PLANTED.items() if value.encode() in data]


def test_no_secret_of_the_environment_is_left_anywhere(s3: S3Server, short_bucket: str, session_folder: Path) -> None:
    at = f"s3://{short_bucket}"
    sources = {part: {"uri": f"{at}/{part}", "labels": "folders"} for part in ("corpus", "scored")}
    config = job_config(Path(), f"{at}/secrets", **{**SHORT, **sources})
    (session_folder / "job.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    jobs = [
        ("jobs/upl.py", str(session_folder / "job.yaml")),
        ("jobs/predict.py", f"{at}/secrets", f"{at}/scored", "--max-rejected", "0.1"),
        ("jobs/report.py", f"{at}/secrets", "--labels"),
    ]
    lines: set[bytes] = set()
    for job in jobs:
        status, output, seen, knowing = run_job(session_folder, *job)
        assert status == 0, output.decode()
        assert knowing >= 1  # the search can find what is there
        lines |= seen
    broken = run_job(session_folder, *jobs[0], "--storage-path", f"{at}/other", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert broken[0] == 2
    found = {"output": secrets_in(broken[1])}
    found |= {line.decode(errors="replace"): secrets_in(line) for line in lines | broken[2]}
    logs = [p for p in session_folder.rglob("*") if p.is_file()]
    assert any(p.name.startswith("worker-") for p in logs)  # Ray's own logs are among them
    found |= {str(p): secrets_in(p.read_bytes()) for p in logs}
    keys = [k for k in s3.objects(short_bucket) if k.startswith("secrets/")]
    assert {k.split("/")[1].partition("-")[0] for k in keys} >= {"features", "members", "classifier", "report"}
    for key in keys:
        found[key] = secrets_in(s3.client().get_object(Bucket=short_bucket, Key=key)["Body"].read())
    assert {place: names for place, names in found.items() if names} == {}
    assert secrets_in(f"x{PLANTED['HF_TOKEN']}".encode()) == ["HF_TOKEN"]
