"""Pictures that show none of the demo's classes: small letters in printed type, as coarse as the handwritten digits."""

from functools import partial
from pathlib import Path
from random import Random

import torch
from PIL import Image

from upl_ray.demo.digits import write_pictures
from upl_ray.demo.pretraining.captions import LETTERS
from upl_ray.demo.pretraining.glyphs import fonts_of
from upl_ray.demo.pretraining.render import Look, paint

EACH = 15  # pictures of a letter
SEED = 7
SIDE = 8  # pixels, as the digits of scikit-learn have


def write_letters(folder: Path) -> None:
    """Write ``folder/<letter>/<index>.png``: light ink on black, grey, 64 x 64 pixels; see `write_pictures`."""
    random, generator = Random(SEED), torch.Generator().manual_seed(SEED)
    looks = [_draw(random, name) for name in LETTERS for _ in range(EACH)]
    pictures = zip(looks, paint(looks, generator), strict=True)
    write_pictures(
        folder,
        (
            (f"{look.name}/{i:04d}.png", partial(Image.fromarray, picture[0].numpy()))
            for i, (look, picture) in enumerate(pictures)
        ),
    )


def _draw(random: Random, name: str) -> Look:
    return Look(
        kind="letter",
        name=name,
        font=random.choice(fonts_of("letter")),
        weight=random.choice((0, 1, 2)),
        shear=random.gauss(0.0, 0.17),
        angle=random.gauss(0.0, 0.1),
        size=random.uniform(0.9, 1.2),
        aspect=random.uniform(0.7, 1.4),
        shift=(0.0, 0.0),
        mirrored=False,
        upside=False,
        wobble=random.choice((0.0, 0.05)),
        resolution=SIDE,
        ink=1.0,
        paper=0.0,
        noise=0.0,
    )
