"""Addresses of Ray that cannot be joined, and working folders that workers would import something else from."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from upl_ray.cluster.connect import RayCluster, check_head, check_working_folder, find_address
from upl_ray.config.settings import Compute
from upl_ray.errors import ConfigError, JobError


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.7:6379", "head.example:6379", "[::1]:6379"])
def test_an_address_comes_from_the_configuration_then_from_the_environment(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert find_address(Compute()) == (address, f"RAY_ADDRESS = '{address}'")
    assert find_address(Compute(ray_address="local")) == ("local", "compute.ray_address = 'local'")
    monkeypatch.delenv("RAY_ADDRESS")
    assert find_address(Compute())[0] == "local"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "http://10.0.0.7:8265",
            "send it the job (ray job submit --address http://10.0.0.7:8265 ...), or name the head's",
        ),
        ("ray://10.0.0.7:10001", "RAY_ADDRESS = 'ray://10.0.0.7:10001' is no address that a job can join; name the"),
        ("10.0.0.7", "is no address that a job can join; name the head's HOST:PORT"),
    ],
)
def test_other_addresses_are_refused_before_work(address: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=re.escape(words)):
        RayCluster(Compute())


def test_a_head_that_is_not_there_is_noticed_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_head(address, "RAY_ADDRESS")
    with pytest.raises(JobError, match=r"No Ray head answers at RAY_ADDRESS \(Connection refused\); start it"):
        check_head(address, "RAY_ADDRESS")
    with pytest.raises(JobError, match=r"No Ray head answers at RAY_ADDRESS \(.*[Nn]ame.*\); start it"):
        check_head("no-such-host.invalid:6379", "RAY_ADDRESS")


def test_a_working_folder_with_another_checkout_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "upl_ray").mkdir()  # results of someone, no package
    check_working_folder()
    (tmp_path / "upl_ray" / "__init__.py").touch()
    with pytest.raises(ConfigError, match=rf"holds another upl_ray \({re.escape(str(tmp_path))}/upl_ray\)"):
        check_working_folder()


@pytest.mark.parametrize("name", ["random.py", "numpy.py", "ray/__init__.py", "torch/__init__.py"])
def test_a_working_folder_with_modules_of_the_same_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for harmless in ("ray/results.json", "torch/a.jpg", "mine.py", "tests/__init__.py", "random.txt"):
        (tmp_path / harmless).parent.mkdir(exist_ok=True)
        (tmp_path / harmless).touch()
    check_working_folder()
    (tmp_path / name).touch()
    top = name.partition("/")[0]
    with pytest.raises(ConfigError, match=rf"holds '{re.escape(top)}', .* the module '{Path(top).stem}' \(.*rename it"):
        check_working_folder()


def test_a_path_of_temporary_files_that_is_too_long_for_sockets_is_refused_by_its_variable(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    job = "def job():\n    RayCluster(Compute()).start('features')\n    return 0\n"
    imports = (
        "from upl_ray.cluster.connect import RayCluster\n"
        "from upl_ray.config.cli import run_job\n"
        "from upl_ray.config.settings import Compute\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_TMPDIR"} | {"TMPDIR": str(folder)}
    code = f"{imports}{job}raise SystemExit(run_job(job))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert re.search(rf"too long a path .*{folder}.*; set RAY_TMPDIR to a shorter one", done.stdout)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (NotADirectoryError(20, "Not a directory", "/x/ray"), ConfigError, r"'/x/ray'\); set RAY_TMPDIR to a folder"),
        (FileNotFoundError(2, "No such file", "/h/nobody/.ray"), ConfigError, r"its token .*\); set HOME to a folder"),
        (
            UnicodeEncodeError("ascii", "/tmp/ü", 5, 6, "no"),
            ConfigError,
            "'.*scratch' holds letters beyond ASCII.* set RAY_TMP",
        ),
        (
            ValueError("Expecting value"),
            ConfigError,
            r"\(Expecting value\); correct .* RAY_OVERRIDE_RESOURCES.* are set",
        ),
        (Exception("The current node timed out during startup."), JobError, r"Ray did not start \(The current node"),
        (RuntimeError("a mistake"), RuntimeError, "^a mistake$"),
    ],
)
def test_a_ray_that_does_not_start_here_says_why(
    error: Exception, kind: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**given: Any) -> None:
        assert os.environ["RAY_TMPDIR"] == str(Path.cwd() / "scratch")  # its processes stand elsewhere
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "scratch")
    monkeypatch.setenv("HOME", "/h/nobody")
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", "junk")
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # by tests before
    with pytest.raises(kind, match=words):
        RayCluster(Compute()).start("features")


def test_a_ray_on_this_machine_that_wants_a_token_is_refused_by_its_variable(tmp_path: Path) -> None:
    start = (
        "from upl_ray.config.cli import run_job\nfrom upl_ray.config.settings import Compute\n"
        "def job():\n    from upl_ray.cluster.connect import RayCluster\n    RayCluster(Compute()).start('features')\n"
        "raise SystemExit(run_job(job))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none"), "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", start], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert re.search(r"without the token that RAY_AUTH_MODE = 'token' asks for .*; unset RAY_AUTH_MODE", done.stderr)


def test_ray_packs_no_working_folder_under_uv_run() -> None:
    job = (
        "def job():\n"
        "    from ray._private.ray_constants import RAY_ENABLE_UV_RUN_RUNTIME_ENV as packs\n"
        "    print(packs)\n"
        "    return 0\n"
    )
    code = f"from upl_ray.config.cli import run_job\n{job}run_job(job)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
