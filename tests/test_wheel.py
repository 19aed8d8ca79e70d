"""The built wheel, installed in an environment that has this project's dependencies and nothing of its checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from worlds import digit_world

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the environment's programs."""
    root = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(root)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = root.glob("upl_ray-*.whl")
    venv.create(root / "venv", with_pip=False, symlinks=True)
    python = root / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (site,) = (root / "venv" / "lib").glob("python*/site-packages")
    # Dependencies alone: links to checkouts, which are `.pth` files there, do not work from here.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python.parent


def call(programs: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment["RAY_USAGE_STATS_ENABLED"] = "0"
    first, *rest = arguments
    return subprocess.run([str(programs / first), *rest], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_wheel_brings_its_commands_and_their_files(installed: Path, tmp_path: Path) -> None:
    where = call(installed, tmp_path, "python", "-c", "import upl_ray; print(upl_ray.__file__)").stdout
    assert where.startswith(str(installed.parent))
    for usage in (call(installed, tmp_path, "upl-ray"), call(installed, tmp_path, "python", "-m", "upl_ray", "--help")):
        assert usage.returncode == 0
        assert "  run      From unlabeled images to an exported classifier." in usage.stdout
    wrong = call(installed, tmp_path, "upl-ray", "rum")
    assert (wrong.returncode, json.loads(wrong.stdout)["error"]) == (2, "There is no command 'rum'; did you mean run?")
    for command in ("run", "predict", "compare", "ablate", "report", "init", "export"):
        usage = call(installed, tmp_path, "upl-ray", command, "--help")
        assert usage.returncode == 0, usage.stderr
        assert f"usage: upl-ray {command} " in usage.stdout
    options = call(installed, tmp_path, "upl-ray", "run", "--help").stdout
    assert "upl-demo/run" in options  # of the demo's configuration, which the wheel brings


@pytest.mark.slow
def test_init_and_run_and_report_work_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    digit_world(tmp_path / "world", corpus_per_class=4)
    (tmp_path / "photos").symlink_to(tmp_path / "world" / "corpus")
    for bad in ("one/empty.png", "two/text.png", "six/cut.png"):
        (tmp_path / "photos" / bad).unlink()
    assert call(installed, tmp_path, "upl-ray", "init", "photos").returncode == 0
    file = tmp_path / "my.yaml"
    file.write_text(file.read_text().replace("[RN50/openai, ViT-B-16/openai]", "['demo:vit_a', 'demo:rn']"))
    done = call(installed, tmp_path, "upl-ray", "run", "my.yaml", "--train.epochs", "1", "--train.members", "2")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["status"], summary["images"], summary["rejected"]) == ("done", 40, 0)
    page = call(installed, tmp_path, "upl-ray", "report", "upl-run").stdout.strip()
    assert "upl-ray run my.yaml --train.epochs 1" in (tmp_path / page).read_text(encoding="utf-8")
