"""The demo's corpus: the 1,797 handwritten digits of scikit-learn, written as image files."""

import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGE_SIZE = 64  # pixels; the originals are 8 x 8
INK_LEVELS = 16  # the originals count ink in 0..16
SCORED_EVERY = 4  # within each class every fourth image is scored, the other three quarters are the corpus


def write_digits(folder: Path) -> None:
    """Write ``folder/{corpus,scored}/<classname>/<index>.png``: light ink on black, grey, 64 x 64 pixels.

    ``index`` is the image's position in scikit-learn's set. The split is stratified and depends on nothing but that
    position. See `write_pictures`.
    """
    images, labels = load_digits(return_X_y=True)
    write_pictures(
        folder,
        (
            (f"{part}/{CLASSNAMES[labels[index]]}/{index:04d}.png", partial(to_picture, images[index].reshape(8, 8)))
            for index, part in enumerate(split(labels))
        ),
    )


def write_pictures(folder: Path, pictures: Iterable[tuple[str, Callable[[], Image.Image]]]) -> None:
    """Make and write pictures under their names in a folder.

    Files that exist are kept; each file appears under its name only when it is complete, so a killed call is repaired
    by the next one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        for name, make in pictures:
            path = folder / name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                complete = Path(partial) / path.name
                make().save(complete)
                os.replace(complete, path)


def split(labels: NDArray[np.integer]) -> list[str]:
    """Name the part of each image: in each class, images 3, 7, 11, ... in order of position are "scored"."""
    seen = [0] * len(CLASSNAMES)
    parts = []
    for label in labels:
        seen[label] += 1
        parts.append("scored" if seen[label] % SCORED_EVERY == 0 else "corpus")
    return parts


def to_picture(ink: NDArray[np.floating]) -> Image.Image:
    """Enlarge one 8 x 8 grid of ink counts (0..16) smoothly to a grey picture."""
    grey = np.round(ink * (255 / INK_LEVELS)).astype(np.uint8)
    return Image.fromarray(grey).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
