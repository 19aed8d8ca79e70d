"""Malformed, odd and mutated image files: each gives a crop as open_clip makes it, or a reason."""

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import mutated_images
import numpy as np
import open_clip
import pytest
from mutated_images import GEOMETRY, crop_or_reason, seed_files
from PIL import Image
from torchvision.transforms import Compose
from zoo import Beast, zoo

import upl_ray
from upl_ray.upl.images import FORMATS, center_crop, decode


@pytest.fixture(scope="module")
def beasts() -> dict[str, Beast]:
    return zoo()


def verdict(beast: Beast) -> str:
    """Empty if the file gives what the zoo expects, else what is wrong."""
    found = crop_or_reason(beast.data)
    if isinstance(found, str):
        return "" if beast.usable is not True and found.isprintable() and 0 < len(found) < 300 else f"reason {found!r}"
    if beast.usable is False or (found.shape, found.dtype) != ((32, 32, 3), np.uint8):
        return f"crop {found.shape} {found.dtype}"
    same = not beast.same or np.array_equal(found, crop_or_reason(beast.same))
    return "" if same else "another crop than that of the file that should give the same"


@pytest.mark.filterwarnings("ignore")
def test_every_file_gives_a_crop_or_a_reason(beasts: dict[str, Beast]) -> None:
    assert len(beasts) >= 60
    assert sum(b.usable is False for b in beasts.values()) >= 30
    assert {name: wrong for name, beast in beasts.items() if (wrong := verdict(beast))} == {}


@pytest.mark.filterwarnings("ignore")
def test_crops_of_odd_files_equal_open_clips(beasts: dict[str, Beast]) -> None:
    transform = open_clip.image_transform(32, is_train=False)
    assert isinstance(transform, Compose)
    uint8 = Compose(
        [t for t in transform.transforms if type(t).__name__ not in ("ToTensor", "MaybeToTensor", "Normalize")]
    )
    for name, beast in beasts.items():
        if beast.usable:
            theirs = np.asarray(uint8(Image.open(io.BytesIO(beast.data))))
            np.testing.assert_array_equal(center_crop(decode(beast.data), GEOMETRY), theirs, err_msg=name)


def test_no_file_of_the_zoo_takes_much_memory(beasts: dict[str, Beast], tmp_path: Path) -> None:
    """Each is decoded in a process that may not have more than 2 GB, so a greedy one would be a reason or a crash."""
    for i, beast in enumerate(beasts.values()):
        (tmp_path / str(i)).write_bytes(beast.data)
    code = (
        "import sys, warnings, pathlib; warnings.simplefilter('ignore')\n"
        "from upl_ray.upl.images import *\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: center_crop(decode(path.read_bytes()), Geometry(224, 224))\n"
        "    except Rejected as error: assert 'emory' not in str(error), (path, error)\n"
        "print('all')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(upl_ray.__file__).parent.parent,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )
    assert done.stdout.strip() == "all", done.stderr


def fuzz_in_a_child(first: int, last: int) -> dict[str, int]:
    """The same in a separate process with bounded time: a crash in a C library fails the test with its number."""
    code = f"import json, mutated_images; print(json.dumps(mutated_images.fuzz({first}, {last})))"
    path = ":".join(map(str, (Path(upl_ray.__file__).parents[1], Path(mutated_images.__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (400, 400)),
    )
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    outcomes: dict[str, int] = json.loads(done.stdout)
    return outcomes


def test_four_thousand_mutated_files_give_crops_or_reasons() -> None:
    outcomes = fuzz_in_a_child(0, 4000)
    assert sum(outcomes.values()) == 4000
    assert min(outcomes.values()) > 100  # mutations are neither harmless nor all fatal


@pytest.mark.slow
def test_ten_thousand_mutated_files_give_crops_or_reasons() -> None:
    outcomes = fuzz_in_a_child(4000, 14_000)
    assert sum(outcomes.values()) == 10_000
    print(outcomes)


def test_every_format_is_in_the_fuzz() -> None:
    opened = {Image.open(io.BytesIO(data)).format for data in seed_files()}
    assert set(FORMATS) <= opened
