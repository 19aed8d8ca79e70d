"""Augmented views: deterministic by seed and image, and distributed as torchvision's random resized crops."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tvf

from upl_ray.upl.images import Geometry, random_crop_box, random_views

GEOMETRY = Geometry(32, 24)
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def photo(width: int = 90, height: int = 70) -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def views(seed: int = 0, image_id: str = "a.jpg", n: int = 4, flip: float = 0.5) -> np.ndarray:
    return random_views(photo(), GEOMETRY, image_id, n, seed, SCALE, flip)


def generator(seed: int, image_id: str) -> np.random.Generator:
    """The documented stream: seed, then the words of the id's SHA-256. Another stream is another `views.VERSION`."""
    words = np.frombuffer(hashlib.sha256(image_id.encode()).digest(), dtype="<u4")
    return np.random.default_rng([seed, *words.tolist()])


def test_views_are_a_function_of_seed_and_image_id() -> None:
    assert views().shape == (4, 32, 24, 3)
    np.testing.assert_array_equal(views(), views())
    np.random.seed(7)
    torch.manual_seed(7)
    np.testing.assert_array_equal(views(), views(seed=0, image_id="a.jpg"))


def test_views_differ_by_seed_by_image_id_and_among_each_other() -> None:
    drawn = [views(seed=s, image_id=i) for s in (0, 1) for i in ("a.jpg", "b.jpg", "é.jpg", "")]
    assert len({view.tobytes() for bank in drawn for view in bank}) == 8 * 4


def test_more_views_begin_with_the_same_ones() -> None:
    np.testing.assert_array_equal(views(n=9)[:4], views(n=4))


def test_no_views_are_an_empty_array() -> None:
    assert views(n=0).shape == (0, 32, 24, 3)


@pytest.mark.parametrize(("interpolation", "mode"), [("bicubic", "RGB"), ("bilinear", "RGB"), ("bicubic", "L")])
def test_views_equal_torchvisions_resized_crop_of_the_same_boxes(interpolation: str, mode: str) -> None:
    geometry, image = Geometry(32, 24, interpolation), photo().convert(mode)
    ours = random_views(image, geometry, "x/y.jpg", 20, 5, SCALE, 0.5)
    rng = generator(5, "x/y.jpg")
    flips = 0
    for view in ours:
        left, top, right, bottom = random_crop_box(image.size, rng, SCALE)
        expected = tvf.resized_crop(
            image, top, left, bottom - top, right - left, [32, 24], InterpolationMode(interpolation)
        )
        if rng.random() < 0.5:
            expected, flips = tvf.hflip(expected), flips + 1
        np.testing.assert_array_equal(view, np.asarray(expected.convert("RGB")))
    assert 3 < flips < 17


@pytest.mark.parametrize(("size", "scale"), [((500, 375), SCALE), ((300, 500), SCALE), ((256, 256), (0.5, 0.9))])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int], scale: tuple[float, float]) -> None:
    n, rng = 5000, np.random.default_rng(0)
    ours = np.array([random_crop_box(size, rng, scale) for _ in range(n)], float)
    torch.manual_seed(0)
    canvas = torch.empty(3, size[1], size[0])
    theirs = np.array([RandomResizedCrop.get_params(canvas, list(scale), list(RATIO)) for _ in range(n)], float)
    left, top, height, width = theirs[:, 1], theirs[:, 0], theirs[:, 2], theirs[:, 3]
    theirs = np.stack([left, top, left + width, top + height], axis=1)
    for boxes in (ours, theirs):
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= size).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all()
    for a, b in zip(measures(ours), measures(theirs), strict=True):
        error = math.sqrt((a.var() + b.var()) / n)
        assert abs(a.mean() - b.mean()) < 4 * error
        assert a.std() == pytest.approx(b.std(), rel=0.06)
        assert np.quantile(a, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(b, [0.1, 0.5, 0.9]), abs=0.12 * b.std())


def measures(boxes: Any) -> Any:
    """Area, logarithm of the aspect ratio, and twice the centre of (left, top, right, bottom) [n, 4] -> [4, n]."""
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    return np.stack([width * height, np.log(width / height), left + right, top + bottom])


@pytest.mark.parametrize("size", [(1, 60), (60, 1), (3, 301), (997, 10), (2, 200), (7, 800)])
def test_fallback_boxes_equal_torchvisions(size: tuple[int, int]) -> None:
    canvas = torch.empty(3, size[1], size[0])
    whole = (1.0, 1.0)  # no box of the whole area fits an image this long
    top, left, height, width = RandomResizedCrop.get_params(canvas, list(whole), list(RATIO))
    box = random_crop_box(size, np.random.default_rng(0), whole)
    assert box == (left, top, left + width, top + height)


@pytest.mark.parametrize("flip", [0.0, 0.25, 0.5, 1.0])
def test_flips_happen_at_the_configured_rate(flip: float) -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 240, 4, dtype=np.uint8), (60, 1)))  # brighter to the right
    bank = random_views(ramp, GEOMETRY, "a", 1000, 0, SCALE, flip).astype(int)
    flipped = bank[:, 16, 0, 0] > bank[:, 16, -1, 0]
    assert abs(flipped.mean() - flip) <= 4 * math.sqrt(flip * (1 - flip) / 1000)
