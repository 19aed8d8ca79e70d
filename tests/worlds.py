"""Small worlds for the tests of the whole job: real handwritten digits, the demo's backbones, few images and epochs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from upl_ray.artifacts import Store
from upl_ray.config import Config
from upl_ray.demo.digits import CLASSNAMES, write_digits

TEMPLATE = "a photo of the digit {}."
BACKBONES = ("demo:vit_a", "demo:vit_b", "demo:rn")

# The shortest run of the whole job that still has many shards, several checkpoints and two trials.
SHORT: dict[str, Any] = {
    "backbones": ["demo:vit_a"],
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


def folders(storage: Path | str, step: str) -> list[str]:
    """Names of the artifacts of a step in a storage folder."""
    return sorted(p.name for p in Path(storage).glob(f"{step}-*"))


def committed_rows(storage: Path | str, folder: str) -> pa.Table:
    """All rows that an artifact's commits name, sorted by image id."""
    store = Store(str(storage))
    tables = [
        store.read_table(f"{folder}/{part}")
        for commit in store.names(f"{folder}/commits")
        for part in store.read_json(f"{folder}/commits/{commit}")["parts"]
    ]
    return pa.concat_tables(tables).sort_by("image_id")


def contexts(classifier_uri: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Context vectors [S, M, W] of an exported classifier."""
    from upl_ray.ensemble import load_ensemble

    return load_ensemble(classifier_uri).ctx.numpy()
