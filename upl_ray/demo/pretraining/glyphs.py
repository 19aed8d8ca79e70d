"""Ink masks of single glyphs, drawn from the fonts that matplotlib ships."""

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from upl_ray.demo.digits import CLASSNAMES

CANVAS = 64  # pixels, height and width of a mask
INK_BOX = 44  # pixels, the longer side of the ink
FONT_SIZE = 96

FONTS: dict[str, tuple[str, ...]] = {  # file name -> attributes that a caption may mention
    "DejaVuSans": ("sans",),
    "DejaVuSans-Bold": ("sans", "thick"),
    "DejaVuSans-Oblique": ("sans", "italic"),
    "DejaVuSans-BoldOblique": ("sans", "thick", "italic"),
    "DejaVuSansMono": ("mono",),
    "DejaVuSansMono-Oblique": ("mono", "italic"),
    "DejaVuSerif": ("serif",),
    "DejaVuSerif-Bold": ("serif", "thick"),
    "DejaVuSerif-Italic": ("serif", "italic"),
    "STIXGeneral": ("serif",),
    "STIXGeneralItalic": ("serif", "italic"),
    "STIXGeneralBol": ("serif", "thick"),
    "cmr10": ("serif",),
    "cmss10": ("sans",),
    "cmti10": ("serif", "italic"),
    "cmtt10": ("mono",),
    "cmb10": ("serif", "thick"),
}
ARABIC_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono")
CIRCLED_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "STIXGeneral", "STIXGeneralBol")
ROMAN = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")


def fonts_of(kind: str) -> tuple[str, ...]:
    """List the fonts that can draw a kind of glyph."""
    return {"arabic": ARABIC_FONTS, "circled": CIRCLED_FONTS, "dots": ("",)}.get(kind, tuple(FONTS))


def characters(kind: str, name: str) -> str:
    """Spell a class name as the characters to draw: ("digit", "three") is "3", ("roman", "three") is "III"."""
    if kind == "letter":
        return name
    value = CLASSNAMES.index(name)
    circled = "\u24ea" if value == 0 else chr(0x2460 + value - 1)
    return {"digit": str(value), "roman": ROMAN[value], "arabic": chr(0x660 + value), "circled": circled}[kind]


@cache
def mask(kind: str, name: str, font: str, weight: int) -> NDArray[np.uint8]:
    """Draw one glyph, 255 where there is ink, centred on a 64 x 64 canvas; ``weight`` is -1 (thin), 0 (as is) to 3."""
    ink = _dots(CLASSNAMES.index(name), weight) if kind == "dots" else _type(characters(kind, name), font, weight)
    ink = ink.crop(ink.getbbox())
    scale = INK_BOX / max(ink.size)
    ink = ink.resize((max(2, round(ink.width * scale)), max(2, round(ink.height * scale))), Image.Resampling.BOX)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink, ((CANVAS - ink.width) // 2, (CANVAS - ink.height) // 2))
    return np.asarray(canvas)


def _type(text: str, font: str, weight: int) -> Image.Image:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    face = ImageFont.truetype(str(path), FONT_SIZE)
    ink = Image.new("L", (FONT_SIZE * (1 + len(text)), FONT_SIZE * 2))
    corner = (FONT_SIZE // 3, FONT_SIZE // 3)
    ImageDraw.Draw(ink).text(corner, text, fill=255, font=face, stroke_width=max(0, 2 * weight))
    return ink.filter(ImageFilter.MinFilter(3)) if weight < 0 else ink


def _dots(count: int, weight: int) -> Image.Image:
    """Place ``count`` >= 1 dots on a 3 x 3 grid, as on a dice."""
    places = {1: [4], 2: [2, 6], 3: [2, 4, 6], 4: [0, 2, 6, 8], 5: [0, 2, 4, 6, 8]}
    chosen = places.get(count) or [place for place in range(9) if count == 9 or place not in _GAPS[count]]
    radius = 11 + 2 * weight
    ink = Image.new("L", (CANVAS * 2, CANVAS * 2))
    draw = ImageDraw.Draw(ink)
    for place in chosen:
        x, y = 24 + 40 * (place % 3), 24 + 40 * (place // 3)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return ink


_GAPS = {6: (1, 4, 7), 7: (1, 7), 8: (4,)}
