"""`make bench-gpu`: one sentence where there is no GPU, and the measuring itself, which runs on a CPU, too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import MakeModel, resolve_folder

from benchmarks.measure import covered
from upl_ray.cluster import placement

ROOT = Path(__file__).resolve().parents[1]
NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def test_without_a_gpu_it_ends_with_one_sentence_and_status_2() -> None:
    installed = f"{sys.prefix}/.installed-dev"  # is not made again
    command = ["make", "--old-file", installed, "bench-gpu", f"VENV={sys.prefix}", "ARGS=--quick"]
    done = subprocess.run(command, cwd=ROOT, env=NO_GPU, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    sentence, end = done.stderr.strip().splitlines()
    assert "sees no GPU on this machine; run this where there is an NVIDIA GPU" in sentence
    assert end.endswith("bench-gpu] Error 2")
    assert "Error" not in done.stdout


def test_one_encoder_is_measured_beside_its_planned_memory(make_model: MakeModel) -> None:
    folder = make_model("tiny")
    options = ["--precision", "bf16", "--device", "cpu", "--batch", "3", "--seconds", "0.05"]
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, env=NO_GPU, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    speed, memory = found["speed"], found["memory"]
    assert 0 < speed["of forward"] < 1
    assert 0 < speed["busy"] < 1
    assert speed["forward [images/s]"] > speed["encoder [images/s]"]
    assert speed["of bare"] == pytest.approx(speed["encoder [images/s]"] / speed["bare [images/s]"])
    plan = placement.memory(resolve_folder(folder), 3, on_gpu=False).host / placement.GIB
    assert memory["planned host [GiB]"] == pytest.approx(plan, rel=1e-3)  # the plan of fp32 is hardly another
    assert 0.2 < memory["host [GiB]"] < 4
    spare = memory["planned host [GiB]"] - memory["host [GiB]"]
    assert memory["HOST_BASE [GiB]"] == pytest.approx(placement.HOST_BASE / placement.GIB - spare)


def test_overlapping_kernels_count_once() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        intervals = [(float(a), float(a + n)) for a, n in rng.integers(0, 20, (6, 2))]
        marked = np.zeros(40, bool)
        for start, end in intervals:
            marked[int(start) : int(end)] = True
        assert covered(intervals) == marked.sum()
    assert covered([]) == 0
