"""The cluster of nodes.py, seen from the tests."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


class Nodes:
    """A head and two worker nodes, each with two CPUs."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        outside = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | environment
        self.environment = outside | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")]),
        }
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "support" / "nodes.py")],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.environment["RAY_ADDRESS"] = self.answer()

    def answer(self) -> Any:
        """The next line of JSON."""
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith(('"', "{", "[{")):
            assert line, "the cluster has ended"
        return json.loads(line)

    def ask(self, question: str) -> Any:
        """`restore`, `lose`, `gain`, `where` or `trains`; see nodes.py."""
        assert self.process.stdin is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """End all nodes."""
        self.process.communicate(timeout=60)

    def start(self, job: str, config: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
        """Start a job as a process beside the cluster, with its configuration and its log in the folder."""
        (folder / "job.yaml").write_text(yaml.safe_dump(config))
        with (folder / "log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, f"jobs/{job}.py", str(folder / "job.yaml")],
                cwd=ROOT,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
