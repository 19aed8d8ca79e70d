"""Rendered type: draw the look of every picture at random, name its attributes, and paint all of them as one tensor.

Shapes: N pictures, S = 64 pixels.
"""

from dataclasses import dataclass
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from upl_ray.demo.digits import CLASSNAMES
from upl_ray.demo.pretraining.captions import LETTERS, Glyph
from upl_ray.demo.pretraining.glyphs import CANVAS, FONTS, fonts_of, mask

KIND_WEIGHTS = {"digit": 76, "roman": 4, "dots": 4, "arabic": 3, "circled": 3, "letter": 10}
BATCH = 1024


@dataclass(frozen=True)
class Look:
    """Everything that decides how one picture is painted.

    Sizes are relative to the mask; ``shift`` and ``wobble`` are in half canvases; ``angle`` is in radians; ``ink``,
    ``paper`` and ``noise`` are shares of white; ``resolution`` is in pixels.
    """

    kind: str
    name: str
    font: str
    weight: int
    shear: float
    angle: float
    size: float
    aspect: float
    shift: tuple[float, float]
    mirrored: bool
    upside: bool
    wobble: float
    resolution: int
    ink: float
    paper: float
    noise: float


def draw_look(random: Random) -> Look:
    """Draw one look from the world of the pretraining."""
    kind = random.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    names = LETTERS if kind == "letter" else CLASSNAMES[kind in ("roman", "dots") :]  # no roman zero
    part = random.random() < 0.12
    size = random.uniform(1.5, 2.5) if part else random.uniform(0.7, 1.4)
    reach = 0.5 if part else 0.1
    contrast = random.uniform(0.3, 1.0)
    low = random.uniform(0.0, 1.0 - contrast)
    light_on_dark = random.random() < 0.75
    return Look(
        kind=kind,
        name=random.choice(names),
        font=random.choice(fonts_of(kind)),
        weight=random.choice((-1, 0, 0, 1, 2, 3)),
        shear=random.gauss(0.0, 0.17),
        angle=random.gauss(0.0, 0.1),
        size=size,
        aspect=random.uniform(0.7, 1.4),
        shift=(random.uniform(-reach, reach), random.uniform(-reach, reach)),
        mirrored=random.random() < 0.12,
        upside=random.random() < 0.03,
        wobble=random.choice((0.0, 0.0, random.uniform(0.03, 0.09))),
        resolution=random.choice((8, 10, 12, 16, 24, CANVAS, CANVAS)),
        ink=low + contrast if light_on_dark else low,
        paper=low if light_on_dark else low + contrast,
        noise=random.choice((0.0, 0.0, 0.0, random.uniform(0.03, 0.12))),
    )


def describe(look: Look) -> Glyph:
    """Name the attributes of a look that a caption may mention."""
    lean = look.shear + look.angle
    named = {
        "thin": look.weight < 0,
        "thick": look.weight > 1,
        "left": lean < -0.15,
        "right": lean > 0.15,
        "small": look.size < 0.75,
        "large": 1.2 < look.size < 1.5,
        "part": look.size >= 1.5,
        "narrow": look.aspect < 0.85,
        "wide": look.aspect > 1.2,
        "mirrored": look.mirrored,
        "upside": look.upside,
        "light": look.ink > look.paper,
        "dark": look.ink < look.paper,
        "faint": abs(look.ink - look.paper) < 0.5,
        "sharp": look.resolution == CANVAS,
        "soft": CANVAS > look.resolution > 12,
        "coarse": look.resolution <= 12,
        "wobbly": look.wobble > 0,
        "noisy": look.noise > 0,
    }
    seen = {look.kind, *FONTS.get(look.font, ()), *(name for name, true in named.items() if true)}
    return Glyph(look.name, frozenset(seen))


def paint(looks: list[Look], generator: torch.Generator) -> Tensor:
    """Paint all looks; return grey pictures, uint8 ``[N, 1, S, S]``."""
    batches = [looks[start : start + BATCH] for start in range(0, len(looks), BATCH)]
    return torch.cat([_paint_batch(batch, generator) for batch in batches])


def _paint_batch(looks: list[Look], generator: torch.Generator) -> Tensor:
    ink = torch.stack([torch.from_numpy(mask(x.kind, x.name, x.font, x.weight).copy()) for x in looks])
    ink = ink[:, None].float() / 255  # [N, 1, S, S]
    grid = F.affine_grid(torch.stack([_inverse_affine(x) for x in looks]), list(ink.shape), align_corners=False)
    knots = torch.randn(len(looks), 2, 4, 4, generator=generator)
    field = F.interpolate(knots, CANVAS, mode="bicubic", align_corners=False).permute(0, 2, 3, 1)  # [N, S, S, 2]
    ink = F.grid_sample(ink, grid + _column(looks, "wobble") * field, align_corners=False)
    ink = _at_resolution(ink, torch.tensor([x.resolution for x in looks]))
    paper = _column(looks, "paper")
    picture = paper + (_column(looks, "ink") - paper) * ink
    picture = picture + _column(looks, "noise") * torch.randn(picture.shape, generator=generator)
    return picture.clamp(0, 1).mul(255).round().to(torch.uint8)


def _inverse_affine(look: Look) -> Tensor:
    """Return the ``[2, 3]`` map from picture to mask coordinates."""
    cos, sin = torch.cos(torch.tensor(look.angle)), torch.sin(torch.tensor(look.angle))
    turn = torch.tensor([[cos, -sin], [sin, cos]])
    shear = torch.tensor([[1.0, -look.shear], [0.0, 1.0]])
    flip = torch.diag(torch.tensor([-1.0 if look.mirrored else 1.0, -1.0 if look.upside else 1.0]))
    stretch = torch.diag(torch.tensor([look.size * look.aspect**0.5, look.size / look.aspect**0.5]))
    inverse = torch.linalg.inv(turn @ shear @ stretch @ flip)
    return torch.cat([inverse, -inverse @ torch.tensor(look.shift)[:, None]], dim=1)


def _at_resolution(ink: Tensor, resolutions: Tensor) -> Tensor:
    """Shrink each picture to its own resolution and enlarge it smoothly again."""
    ink = ink.clone()
    for resolution in sorted(set(resolutions.tolist())):
        chosen = resolutions == resolution
        small = F.interpolate(ink[chosen], resolution, mode="area")
        ink[chosen] = F.interpolate(small, CANVAS, mode="bicubic", align_corners=False).clamp(0, 1)
    return ink


def _column(looks: list[Look], field: str) -> Tensor:
    return torch.tensor([getattr(look, field) for look in looks])[:, None, None, None]
