"""A hundred random kills of workers, drivers and nodes: every job ends, run again as often as it takes, undisturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import children, lasting, results, title
from node_process import Nodes
from s3_server import S3Server
from worlds import SHORT, job_config

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("UPL_KILLS", "100"))
KILLS_OF_A_JOB = 15  # then it is let run to its end; there are several jobs
PAUSE_S = (0.2, 2.5)  # between two kills
OTHERS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # Ray's own; they live and die with a node
DRIVERS, NODES = 0.06, 0.06  # their shares of the kills; the others are workers


@pytest.fixture
def nodes(s3: S3Server, tmp_path: Path) -> Iterator[Nodes]:
    (tmp_path / "nodes").mkdir()
    cluster = Nodes(tmp_path / "nodes", s3.environment())
    yield cluster
    cluster.stop()


def workers(pid: int) -> dict[int, str]:
    """All processes below one that do something for a job, and what."""
    found = {}
    for child in children(pid):
        name = title(child)
        if name.startswith("ray::") and not name.startswith(OTHERS):
            found[child] = name.removeprefix("ray::").split()[0][:60]
        found |= workers(child)
    return found


def strike(chance: random.Random, nodes: Nodes, job: subprocess.Popen[str]) -> str:
    """Kill something; returns what, or nothing if there was nobody."""
    lot = chance.random()
    if lot < DRIVERS:
        job.kill()
        return "driver"
    if lot < DRIVERS + NODES:
        nodes.ask("lose")
        nodes.ask("gain")
        return "node"
    victims = workers(nodes.process.pid)
    if not victims:
        return ""
    pid = chance.choice(sorted(victims))
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return victims[pid]


def attempt(
    nodes: Nodes, config: dict[str, Any], folder: Path, chance: random.Random, most: int
) -> tuple[int, Counter[str]]:
    """Run a job once with at most so many kills: its exit status, and what was killed."""
    killed: Counter[str] = Counter()
    job = nodes.start("upl", config, folder)
    deadline = time.monotonic() + 500
    while job.poll() is None:
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(chance.uniform(*PAUSE_S))
        if job.poll() is None and killed.total() < most and (victim := strike(chance, nodes, job)):
            killed[victim] += 1
    job.communicate()
    log = (folder / "log").read_text()
    assert job.returncode in (0, 1, -signal.SIGKILL), log
    assert sum(line.startswith("error: ") for line in log.splitlines()) == (job.returncode == 1), log
    return job.returncode, killed


@pytest.mark.timeout(3000)
def test_a_hundred_random_kills(nodes: Nodes, s3: S3Server, short_world: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("UPL_SEED", random.SystemRandom().randrange(10**6)))
    print(f"\nseed {seed} (UPL_SEED={seed} draws the same lots again)", flush=True)
    chance, killed, statuses = random.Random(seed), Counter[str](), Counter[int]()
    undisturbed: dict[str, Any] = {}
    jobs = kept = 0
    while killed.total() < KILLS:
        storage = tmp_path / f"storage-{jobs}"
        config = job_config(short_world, storage, **SHORT).model_dump(mode="json")
        most, status, committed = KILLS_OF_A_JOB if undisturbed else 0, -1, dict[str, str]()
        while status != 0:
            status, victims = attempt(nodes, config, tmp_path, chance, most)
            most, killed, statuses[status] = most - victims.total(), killed + victims, statuses[status] + 1
            now = lasting(str(storage), s3)
            assert {name: now.get(name) for name in committed} == committed  # nothing of it went or changed
            committed = now
        undisturbed = undisturbed or results(str(storage))
        assert results(str(storage)) == undisturbed
        jobs, kept = jobs + 1, kept + len(committed)
        print(f"job {jobs}: {killed.total()} kills so far", flush=True)
    print(f"{jobs} jobs as undisturbed, {killed.total()} kills, {kept} files kept as they were, 0 lost")
    print(f"exit statuses of the attempts: {dict(statuses)}")
    for name, count in killed.most_common():
        print(f"{count:>5} {name}")
