"""What one per cent of new images costs, as a share of the first run.

python -m benchmarks.incremental --folder photos/ --images 4000

The demo's three backbones over real photographs, the whole job without views and with one short member; then 1 % more
photographs, and the same job again. Counted are the images that were encoded, from the commits of features; times are
of the whole job, Ray's start-up included.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import ray

from benchmarks.embed import pick
from benchmarks.measure import hardware, report
from upl_ray.config.settings import Config
from upl_ray.pipeline.main import run
from upl_ray.storage.store import Store


def encoded(store: Store) -> int:
    """(image, backbone) pairs that feature commits in a storage account for."""
    folders = [p.name for p in Path(store.uri).glob("features-*")]
    return sum(store.read_json(f"{f}/commits/{c}")["rows"] for f in folders for c in store.names(f"{f}/commits"))


def main() -> None:
    """Print a row for the first run, one for the grown corpus and one with nothing new."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="photographs, nested")
    parser.add_argument("--images", type=int, default=4000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = pick(args.folder, args.images + args.images // 100, Path(folder) / "photos")
        later = sorted(photos.iterdir())[:: args.images // (args.images // 100)][: args.images // 100]
        for path in later:
            path.rename(path.with_suffix(path.suffix + ".later"))
        config = Config.model_validate(
            {
                "corpus": {"uri": str(photos)},
                "classnames": ["airplane", "motorbike", "face", "watch", "leopard"],
                "backbones": ["demo:vit_a", "demo:vit_b", "demo:rn"],
                "storage_path": f"{folder}/run",
                "views": {"count": 0},
                "train": {"members": 1, "epochs": 1},
            }
        )
        rows: list[dict[str, Any]] = []
        before = 0
        for name in ("first run", "1 % more", "nothing new"):
            if name == "1 % more":
                for path in later:
                    path.with_suffix(path.suffix + ".later").rename(path)
            summary = run(config)
            total = encoded(Store(config.storage_path))
            share = (total - before) / (rows[0]["encoded"] if rows else total)
            rows.append(
                {
                    "run": name,
                    "images": summary["images"],
                    "encoded": total - before,
                    "share of first": share,
                    "seconds": summary["seconds"],
                }
            )
            before = total
    report("incremental", rows, hardware=hardware("cpu"), ray=ray.__version__)


if __name__ == "__main__":
    main()
