"""The whole job where Ray's object store is smaller than the images that pass through it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from models import write_model
from PIL import Image
from worlds import committed_rows, contexts, folders

pytestmark = pytest.mark.faults  # longer than the gate has time for

ROOT = Path(__file__).parents[2]
SMALL = 80 * 2**20  # bytes; Ray allows no less than 75 MB
IMAGES, SIZE = 1000, 224
PROGRAM = """
import json, sys
from pathlib import Path
import ray
from upl_ray.config.cli import load_config

store = {"object_store_memory": int(sys.argv[2])} if sys.argv[2] != "0" else {}
ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **store)
capacity = ray.cluster_resources()["object_store_memory"]
from upl_ray.pipeline.main import run

print(json.dumps({**run(load_config([sys.argv[1]], Path())), "capacity": capacity}))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of coarse noise, all images different."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(IMAGES):
        colours = rng.integers(0, 256, (7, 7, 3), np.uint8)
        image = Image.fromarray(colours).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        name = folder / "ab"[i % 2] / f"{i:04d}.png"
        name.parent.mkdir(exist_ok=True)
        image.save(name)
    return folder


def job(photos: Path, model: Path, folder: Path, store: int) -> dict[str, Any]:
    folder.mkdir()
    fields = {
        "corpus": {"uri": str(photos), "labels": "folders"},
        "classnames": ["a", "b"],
        "backbones": [f"local-dir:{model}"],
        "storage_path": str(folder / "run"),
        "views": {"count": 4},
        "train": {"members": 2, "epochs": 4, "n_ctx": 4},
        "compute": {"shard_size": 500, "trials": 1},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(fields))
    command = [sys.executable, "-c", PROGRAM, str(folder / "job.yaml"), str(store)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_store_smaller_than_the_images_gives_the_same_results(photos: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", vision={"image_size": SIZE, "patch_size": 56})
    small, usual = (job(photos, model, tmp_path / name, store) for name, store in (("small", SMALL), ("usual", 0)))
    assert small["capacity"] == SMALL
    assert IMAGES * SIZE * SIZE * 3 > 1.5 * SMALL
    assert np.array_equal(contexts(small["classifier"]), contexts(usual["classifier"]))
    for step in ("features", "pseudo_labels", "predictions"):
        (folder,) = folders(small["storage"], step)
        assert committed_rows(small["storage"], folder).equals(committed_rows(usual["storage"], folder))
    assert small["scores"] == usual["scores"]
