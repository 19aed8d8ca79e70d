"""The script of the CronJobs: when it starts a run, how it follows the run, and with which status it ends."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "kuberay" / "cronjob" / "run.sh"

# Stands for the real kubectl: answers `get` with one line of a file after another, and logs every command.
KUBECTL = """#!/bin/sh
echo "$1" >> "$LOG"
[ "$1" = "$BROKEN" ] && exit 1
[ "$1" = patch ] && { echo template; exit 0; }
[ "$1" = create ] && { grep -q template; exit; }
[ "$1" = get ] || exit 0
answer=$(head -n 1 "$STAGES")
sed -i 1d "$STAGES"
[ "$answer" = unreachable ] && exit 1
printf '%s' "$answer"
"""

Follow = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def follow(tmp_path: Path) -> Follow:
    def run(*stages: str, broken: str = "") -> tuple[int, list[str]]:
        (tmp_path / "kubectl").write_text(KUBECTL)
        (tmp_path / "kubectl").chmod(0o755)
        (tmp_path / "stages").write_text("".join(f"{s}\n" for s in stages))
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "INTERVAL_S": "0",
            "BROKEN": broken,
            "LOG": str(tmp_path / "log"),
            "STAGES": str(tmp_path / "stages"),
        }
        script = ["sh", str(SCRIPT), "upl-nightly"]
        done = subprocess.run(script, env=environment, capture_output=True, timeout=30, check=False)
        log = (tmp_path / "log").read_text().splitlines()
        assert (tmp_path / "stages").read_text() == ""  # it asked as often as expected
        return done.returncode, [command for command in log if command != "get"]

    return run


NEW = ["patch", "create"]


@pytest.mark.parametrize(
    ("stages", "status", "asked"),
    [
        (["", "/", "Running/RUNNING", "Complete/SUCCEEDED"], 0, NEW),
        (["Complete/SUCCEEDED", "/", "Complete/SUCCEEDED"], 0, ["delete", *NEW]),
        (["Failed/FAILED", "Initializing/", "Complete/SUCCEEDED"], 0, ["delete", *NEW]),
        (["", "Running/RUNNING", "Failed/FAILED"], 1, NEW),
        (["", "Failed/"], 1, NEW),
        (["", "ValidationFailed/"], 1, NEW),
        (["ValidationFailed/", "Initializing/", "Complete/SUCCEEDED"], 0, ["delete", *NEW]),
        (["", "Complete/STOPPED"], 1, NEW),
        (["", "Retrying/FAILED", "Running/RUNNING", "Complete/SUCCEEDED"], 0, NEW),
        (["", "Running/RUNNING", "unreachable", "Complete/SUCCEEDED"], 0, NEW),
        (["", "Running/RUNNING", ""], 1, NEW),
        (["/"], 1, []),
        (["Running/RUNNING"], 1, []),
        (["Retrying/FAILED"], 1, []),
        (["unreachable"], 1, []),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else None,
)
def test_a_run_is_followed(follow: Follow, stages: list[str], status: int, asked: list[str]) -> None:
    returned, commands = follow(*stages)
    assert (returned, sorted(commands)) == (status, sorted(asked))
    assert "delete" not in commands or commands[0] == "delete"


@pytest.mark.parametrize("broken", ["delete", "patch", "create"])
def test_a_step_that_fails_is_the_last(follow: Follow, broken: str) -> None:
    status, commands = follow("Failed/FAILED", broken=broken)
    assert status != 0
    assert set(commands) == ({"delete"} if broken == "delete" else {"delete", *NEW})
