"""Turns the name of a data set into what the job understands: manifests of its parts, and class names."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from upl_ray.artifacts import Artifact, Store, fingerprint
from upl_ray.classnames import clean_classname
from upl_ray.config import Config, ConfigError, Source
from upl_ray.datasets.layouts import LAYOUTS
from upl_ray.datasets.splits import Split, read_split
from upl_ray.storage import absolute

VERSION = 1  # raise when the same split gives other manifests
FIELDS = {"train": "corpus", "val": "validation", "test": "scored"}  # part of the split -> section of the configuration


def open_dataset(config: Config, store: Store) -> Config:
    """Fill in corpus, validation, scored and class names from `config.dataset`; without one, nothing changes.

    Labels of the train part are in its manifest, to score pseudo-labels and to draw few-shot samples; pseudo-labels are
    made without them. A manifest of each part is written to the run's storage.

    Raises:
        ConfigError: see `splits.read_split`; or images or class names were given beside the data set.
    """
    name = config.dataset.name
    if not name:
        return config
    given = [f for f in FIELDS.values() if getattr(config, f).uris]
    if given or config.classnames:
        field = [*(f"{f}.uri" for f in given), "classnames"][0]
        raise ConfigError(f"{field} is given, but dataset.name {name!r} says what it is; remove one of the two.")
    try:
        root = absolute(config.dataset.root)
    except ConfigError as error:
        raise ConfigError(f"dataset.root: {error}") from None
    split = read_split(LAYOUTS[name], root)
    artifact = Artifact(store, f"dataset-{name}", fingerprint({"version": VERSION, **_identity(split)}))
    update: dict[str, Any] = {"classnames": tuple(clean_classname(n) for n in split.classnames)}
    for part in split.parts:
        manifest = artifact.name(f"{part}.parquet")
        store.write_table(manifest, manifest_table(split, part))
        update[FIELDS[part]] = Source(uri=store.join(manifest), labels="column", roots=(split.images,))
    artifact.finish(dataset=name, images={p: len(i) for p, i in split.parts.items()}, classnames=split.classnames)
    return config.model_copy(update=update)


def manifest_table(split: Split, part: str) -> pa.Table:
    """One row an image: image_id, uri, label (index of the class, as names may repeat), version of the file."""
    items = sorted(split.parts[part].items())
    return pa.table(
        {
            "image_id": pa.array([i for i, _ in items], pa.string()),
            "uri": pa.array([f"{split.images}/{i}" for i, _ in items], pa.string()),
            "label": pa.array([str(label) for _, label in items], pa.string()),
            "version": pa.array([split.versions[i] for i, _ in items], pa.string()),
        }
    )


def _identity(split: Split) -> dict[str, Any]:
    """What a split says; versions of files are not part of it, so that a changed image costs only itself."""
    return {"images": split.images, "classnames": split.classnames, "parts": split.parts}
