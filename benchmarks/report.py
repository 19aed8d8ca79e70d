"""Size, time and loading of a large report.

python -m benchmarks.report --classes 1000 --per-class 16 --folder big-report/

The images are crops of the two photographs that scikit-learn ships, so that they compress like photographs. Labels are
drawn. How fast the page
loads in a browser is measured by `tests/report/test_report_browser.py`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.measure import hardware, report, seconds_of
from benchmarks.synthetic_run import SyntheticRun
from upl_ray.report.page import PAGE, write_report


def write_images(folder: Path, classnames: list[str], per_class: int, letters: int = 0, seed: int = 0) -> None:
    """Random crops of two photographs, 160 x 160 pixels, as JPEG files in a sub-folder for each class.

    Their names have so many letters, or as few as they need.
    """
    photographs = load_sample_images().images
    rng = np.random.default_rng(seed)
    for name in classnames:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            photograph = photographs[rng.integers(len(photographs))]
            size = int(rng.integers(80, 320))
            y, x = (int(rng.integers(0, n - size)) for n in photograph.shape[:2])
            crop = Image.fromarray(photograph[y : y + size, x : x + size]).resize((160, 160))
            file = f"IMG_{rng.integers(10**8):08d}_{i}".ljust(letters, "x")
            crop.save(folder / name / f"{file}.jpg", quality=85)


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--per-class", type=int, default=16)
    parser.add_argument("--letters", type=int, default=0, help="of the images' names")
    parser.add_argument("--variants", nargs="+", default=["upl*"])
    parser.add_argument("--folder", type=Path, help="keep everything here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        names = [f"class number {i:04d}" for i in range(args.classes)]
        write_images(folder / "images", names, args.per_class, args.letters)
        made = SyntheticRun(
            folder / "run", folder / "images", tuple(names), tuple(args.variants), members=16, top_k=args.per_class
        )
        store = made.write()
        row: dict[str, Any] = {"classes": args.classes, "images": args.classes * args.per_class}
        row["first report [s]"] = seconds_of(lambda: write_report(store))
        row["rebuilt [s]"] = seconds_of(lambda: write_report(store, again=True))
        row["page [MB]"] = (folder / "run" / PAGE).stat().st_size / 1e6
        report("report", [row], hardware=hardware("cpu"))


if __name__ == "__main__":
    main()
