"""Streaming top-K over 10^5, 10^6 and 10^7 images: time, and the driver's peak memory.

python -m benchmarks.selection --rows 100000 1000000 10000000

Pseudo-labels and confidences are generated in the tasks, 1,000 classes, K = 16. Each size runs in a process of its own,
after the same small selection has warmed Ray up; its peak is what that process held at most (`VmHWM`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import ray

from benchmarks.measure import hardware, peak_host_gib, report, seconds_of
from upl_ray.config.settings import Compute
from upl_ray.pipeline.selection import ROWS_OF_GROUP, streaming_top_k

CLASSES, K, SHARD = 1000, 16, 4096


def shards(group: tuple[int, int]) -> Iterator[pa.Table]:
    """Pseudo-labels of the images `first` to `last`, one table a shard."""
    for start in range(*group, SHARD):
        rows = np.arange(start, min(start + SHARD, group[1]))
        rng = np.random.default_rng(start)
        yield pa.table(
            {
                "image_id": [f"images/{i:09d}.jpg" for i in rows],
                "pseudo_label": rng.integers(0, CLASSES, len(rows)).astype(np.int32),
                "confidence": rng.random(len(rows), np.float32),
                "shard": [f"{start:016x}"] * len(rows),
            }
        )


def one(rows: int) -> dict[str, float]:
    """Select among so many rows in this process."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    def select(total: int) -> None:
        groups = [(i, min(i + ROWS_OF_GROUP, total)) for i in range(0, total, ROWS_OF_GROUP)]
        assert streaming_top_k(groups, shards, K, Compute()).num_rows == CLASSES * K

    select(100_000)
    seconds = seconds_of(lambda: select(rows))
    return {"seconds": seconds, "peak": 1024 * peak_host_gib()}


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**5, 10**6, 10**7])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one)))
        return
    rows = []
    for n in args.rows:
        command = [sys.executable, "-m", "benchmarks.selection", "--one", str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append(
            {
                "images": n,
                "seconds": found["seconds"],
                "million images/s": n / found["seconds"] / 1e6,
                "driver's peak [MiB]": found["peak"],
            }
        )
    report("selection", rows, classes=CLASSES, k=K, hardware=hardware("cpu"), ray=ray.__version__)


if __name__ == "__main__":
    main()
