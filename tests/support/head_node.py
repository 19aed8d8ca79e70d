"""A head node for tests of submitted jobs: `ray start --head` on free ports, with token authentication."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def free_ports(count: int) -> list[int]:
    """Free ports below those that Linux gives to whoever asks for any: Ray binds some only seconds after its start."""
    free: list[int] = []
    for port in random.sample(range(20_000, 32_000), 200):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            free.append(port)
        if len(free) == count:
            return free
    raise AssertionError(f"fewer than {count} of 200 ports are free")


class HeadNode:
    """A running head, until `stop`."""

    def __init__(self, folder: Path, cpus: int, **environment: str) -> None:
        gcs, dashboard, self.metrics_port, agent, client = free_ports(5)
        self.token, token = secrets.token_hex(32), folder / "token"
        token.write_text(self.token)
        token.chmod(0o600)
        self.address, self.gcs = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}"
        outside = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment = outside | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nothing waits for the work of these tests
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # `python` is this one
            **environment,
        }
        ports = {
            "port": gcs,
            "dashboard-port": dashboard,
            "metrics-export-port": self.metrics_port,
            "dashboard-agent-listen-port": agent,
            "ray-client-server-port": client,
        }
        options = [f"--{name}={port}" for name, port in ports.items()]
        self.log = folder / "head.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*RAY, "start", "--head", "--block", "--dashboard-host=127.0.0.1", f"--num-cpus={cpus}", *options],
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_for_dashboard()

    def _wait_for_dashboard(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                self.get("/api/jobs/")
                return
            except OSError:  # no listener yet, or one that does not know the jobs yet
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.2)

    def stop(self) -> None:
        """End the head and everything it has started."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=60)

    def ray(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of Ray's command line against this head."""
        command = [*RAY, *args[:2], "--address", self.address, *args[2:]]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    def submit(self, *args: str, job_id: str, wait: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray job submit`: the repository as the working directory, the shipped runtime environment."""
        options = ["--working-dir", ".", "--runtime-env", "deploy/runtime-env.yaml", "--submission-id", job_id]
        return self.ray("job", "submit", *options, *([] if wait else ["--no-wait"]), "--", "python", *args)

    def status(self, job_id: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return str(json.loads(self.get(f"/api/jobs/{job_id}"))["status"])

    def stop_job(self, job_id: str) -> None:
        """Stop a job as `ray job stop` does, without the seconds in which that starts."""
        assert json.loads(self.get(f"/api/jobs/{job_id}/stop", "POST"))["stopped"]
        self.wait_until(job_id, lambda: self.status(job_id) == "STOPPED")

    def get(self, path: str, method: str = "GET") -> str:
        """Answer of the head's HTTP interface to a request with the token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self.address + path, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return str(answer.read().decode())
        except OSError:
            assert self.process.poll() is None, self.log.read_text()
            raise

    def wait_until(self, job_id: str, happened: Callable[[], bool]) -> None:
        """Wait while a job runs until something has happened."""
        deadline = time.monotonic() + 300
        while not happened():
            assert time.monotonic() < deadline, self.ray("job", "logs", job_id).stdout
            time.sleep(0.05)

    def metrics(self) -> str:
        """Metrics as Prometheus reads them from the head's agent."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


def last_line(output: str) -> dict[str, Any]:
    """The job's summary: the last line of its log that is JSON."""
    lines = [line for line in output.splitlines() if line.startswith('{"')]
    summary: dict[str, Any] = json.loads(lines[-1])
    return summary
