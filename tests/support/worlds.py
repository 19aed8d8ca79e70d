"""Small worlds for the tests of the whole job: real handwritten digits, the demo's backbones, few images and epochs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from upl_ray.config.settings import Config
from upl_ray.demo.digits import CLASSNAMES, write_digits
from upl_ray.storage.store import Store

ROOT = Path(__file__).parents[2]
TEMPLATE = "a photo of the digit {}."
BACKBONES = ("demo:vit_a", "demo:vit_b", "demo:rn")

# The shortest run of the whole job that still has many shards, several checkpoints and two trials.
SHORT: dict[str, Any] = {
    "backbones": ["demo:vit_a"],
    "variants": ["upl*"],
    "label": {"top_k": 4, "max_rejected": 0.1},
    "views": {"count": 2},
    "train": {"members": 2, "epochs": 20, "checkpoint_every": 1},
    "compute": {"shard_size": 10, "chunk_size": 2, "max_actors": 1, "trials": 2},
}


def digit_world(root: Path, corpus_per_class: int = 16, scored_per_class: int = 4) -> Path:
    """A corpus and a scored folder with the first digits of each class; in the corpus also three bad files."""
    write_digits(root / "all")
    for part, count in (("corpus", corpus_per_class), ("scored", scored_per_class)):
        for name in CLASSNAMES:
            (root / part / name).mkdir(parents=True)
            for path in sorted((root / "all" / part / name).iterdir())[:count]:
                shutil.copy(path, root / part / name / path.name)
    good = next((root / "corpus" / "one").iterdir()).read_bytes()
    (root / "corpus" / "one" / "empty.png").write_bytes(b"")
    (root / "corpus" / "two" / "text.png").write_bytes(b"this is no image")
    (root / "corpus" / "six" / "cut.png").write_bytes(good[: len(good) // 2])
    return root


def job_config(world: Path, storage: Path | str, **sections: Any) -> Config:
    """A short run over a digit world; `sections` override or add fields."""
    data: dict[str, Any] = {
        "corpus": {"uri": str(world / "corpus"), "labels": "folders"},
        "scored": {"uri": str(world / "scored"), "labels": "folders"},
        "classnames": list(CLASSNAMES),
        "template": TEMPLATE,
        "backbones": list(BACKBONES),
        "storage_path": str(storage),
        "label": {"top_k": 4, "max_rejected": 0.05},
        "views": {"count": 6},
        "train": {"members": 4, "epochs": 6, "checkpoint_every": 2},
        "compute": {"shard_size": 60, "chunk_size": 16, "max_actors": 2, "trials": 2},
    }
    for name, value in sections.items():
        data[name] = {**data.get(name, {}), **value} if isinstance(value, dict) else value
    return Config.model_validate(data)


def kill_job(config: Config, folder: Path, reached: Callable[[], bool]) -> None:
    """Run the main job in processes of its own, with a log in `folder`, and kill all of them once it got that far."""
    (folder / "job.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "jobs/upl.py", str(folder / "job.yaml")]
    with (folder / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 300
        while not reached() and job.poll() is None:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.02)
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    assert not Path(config.storage_path, "run.json").exists(), "the job ended before it could be killed"


def folders(storage: Path | str, step: str) -> list[str]:
    """Names of the steps of a step in a storage folder."""
    return sorted(p.name for p in Path(storage).glob(f"{step}-*"))


def committed_rows(storage: Path | str, folder: str) -> pa.Table:
    """All rows that an step's commits name, sorted by image id."""
    store = Store(str(storage))
    tables = [
        store.read_table(f"{folder}/{part}")
        for commit in store.names(f"{folder}/commits")
        for part in store.read_json(f"{folder}/commits/{commit}")["parts"]
    ]
    return pa.concat_tables(tables).sort_by("image_id")


def contexts(classifier_uri: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Context vectors [S, M, W] of an exported classifier."""
    from upl_ray.upl.ensemble import load_ensemble

    return load_ensemble(classifier_uri).ctx.numpy()
