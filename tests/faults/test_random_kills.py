"""A hundred random kills of workers, drivers and nodes: every job ends, run again as often as it takes, undisturbed."""

from __future__ import annotations

import os
import random
import re
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
KILLS_OF_A_KIND = 3  # in a job: what runs longest, loading weights, would be struck every time
PAUSE_S = (0.05, 1.5)  # between two lots
OTHERS = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # they live and die with a node
RAYS_OWN = re.compile(r"_|ActorLocationTracker")  # actors that Ray Data keeps beside its work, from start to end
OTHER_KILLS = 0.05  # share of the lots that fall on the driver, a node or one of Ray's own actors; the others on work


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


def strike(chance: random.Random, nodes: Nodes, job: subprocess.Popen[str], killed: Counter[str]) -> str:
    """Kill something that was not killed too often; returns what, or nothing if there was nobody."""
    others, work = {"driver": job.pid, "node": 0}, {}
    for pid, name in workers(nodes.process.pid).items():
        (others if RAYS_OWN.match(name) else work)[name] = pid
    found = others if chance.random() < OTHER_KILLS else work
    kinds = sorted(name for name in found if killed[name] < KILLS_OF_A_KIND)
    if not kinds:
        return ""
    victim = chance.choice(kinds)
    if victim == "node":
        nodes.ask("lose")
        nodes.ask("gain")
        return victim
    try:
        os.kill(found[victim], signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return victim


def attempt(
    nodes: Nodes, config: dict[str, Any], folder: Path, chance: random.Random, most: int, killed: Counter[str]
) -> int:
    """Run a job once until at most so many were killed in all, and add what was: its exit status."""
    job = nodes.start("upl", config, folder)
    deadline = time.monotonic() + 500
    while job.poll() is None:
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(chance.uniform(*PAUSE_S))
        if job.poll() is None and killed.total() < most and (victim := strike(chance, nodes, job, killed)):
            killed[victim] += 1
    job.communicate()
    log = (folder / "log").read_text()
    assert job.returncode in (0, 1, -signal.SIGKILL), log
    assert sum(line.startswith("error: ") for line in log.splitlines()) == (job.returncode == 1), log
    return job.returncode


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
        most, status = KILLS_OF_A_JOB if undisturbed else 0, -1
        victims, committed = Counter[str](), dict[str, str]()
        while status != 0:
            status = attempt(nodes, config, tmp_path, chance, most, victims)
            statuses[status] += 1
            now = lasting(str(storage), s3)
            assert {name: now.get(name) for name in committed} == committed  # nothing of it went or changed
            committed = now
        undisturbed = undisturbed or results(str(storage))
        assert results(str(storage)) == undisturbed
        jobs, kept, killed = jobs + 1, kept + len(committed), killed + victims
        print(f"job {jobs}: {killed.total()} kills so far", flush=True)
    print(f"{jobs} jobs as undisturbed, {killed.total()} kills, {kept} files kept as they were, 0 lost")
    print(f"exit statuses of the attempts: {dict(statuses)}")
    for name, count in killed.most_common():
        print(f"{count:>5} {name}")
