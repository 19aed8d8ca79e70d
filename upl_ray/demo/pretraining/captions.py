"""Captions of the pretraining: words for the attributes of a rendered glyph, in varied order.

A caption describes more than the class: a part of the attributes is mentioned, each in one of several wordings, and
most captions end in the class name and a full stop.
"""

from dataclasses import dataclass
from random import Random

from upl_ray.demo.digits import CLASSNAMES

KIND_SHARE = 0.8  # of the captions say what kind of glyph it is
CLASS_LAST_SHARE = 0.7  # of the captions end in the class name
LETTERS = "abcdefghijklmnopqrstuvwxyz"

OPENERS = ("a photo of", "a picture of", "an image of", "a drawing of", "this is", "here is", "")
ARTICLES = ("the", "a", "")
KINDS: dict[str, tuple[str, ...]] = {
    "digit": ("digit", "number", "figure"),
    "roman": ("roman numeral", "roman number"),
    "dots": ("dots", "spots", "dots like on a dice"),
    "arabic": ("eastern arabic digit", "eastern arabic number", "arabic numeral"),
    "circled": ("circled digit", "digit in a circle", "encircled number"),
    "letter": ("letter", "small letter", "lower case letter"),
}
WORDINGS: dict[str, tuple[str, ...]] = {
    "sans": ("sans", "plain type", "without serifs"),
    "serif": ("serif", "book type", "with serifs"),
    "mono": ("typewriter", "fixed width", "code type"),
    "italic": ("italic", "cursive"),
    "thin": ("thin", "light stroke", "fine lines"),
    "thick": ("thick", "bold", "heavy stroke"),
    "left": ("leaning left", "slanted back", "tilted left"),
    "right": ("leaning right", "slanted", "tilted right"),
    "small": ("small", "tiny", "far away"),
    "large": ("large", "filling the frame"),
    "part": ("a zoomed part", "close up", "cut off"),
    "narrow": ("narrow", "squeezed"),
    "wide": ("wide", "stretched"),
    "mirrored": ("mirrored", "reversed"),
    "upside": ("upside down", "turned over"),
    "light": ("white on black", "light on dark", "bright ink"),
    "dark": ("black on white", "dark on light", "dark ink"),
    "faint": ("faint", "low contrast", "pale"),
    "sharp": ("sharp", "crisp", "clean"),
    "soft": ("soft", "blurred", "out of focus"),
    "coarse": ("coarse", "low resolution", "few pixels"),
    "wobbly": ("wobbly", "shaky", "drawn by hand", "bent"),
    "noisy": ("noisy", "grainy"),
}


@dataclass(frozen=True)
class Glyph:
    """The content of one rendered picture: its class name, and the kind and attributes that can be mentioned."""

    name: str
    attributes: frozenset[str]


@dataclass(frozen=True)
class Caption:
    """A sentence about a picture, and which of its attributes the sentence mentions."""

    text: str
    name: str
    mentioned: frozenset[str]

    def is_true_of(self, glyph: Glyph) -> bool:
        """True if the sentence describes this picture, too: its class, and only attributes that it has."""
        return self.name == glyph.name and self.mentioned <= glyph.attributes


def write_caption(glyph: Glyph, random: Random, richness: float) -> Caption:
    """Describe a picture: a draw mentions from none to the share ``richness`` of its attributes, in varied words."""
    share = richness * random.random() ** 1.5
    mentioned = [
        name for name in sorted(glyph.attributes) if random.random() < (KIND_SHARE if name in KINDS else share)
    ]
    kind = next((random.choice(KINDS[name]) for name in mentioned if name in KINDS), "")
    phrases = [random.choice(WORDINGS[name]) for name in mentioned if name in WORDINGS]
    random.shuffle(phrases)
    cut = random.randint(0, len(phrases))
    before, after = phrases[:cut], phrases[cut:]
    opener, subject = random.choice(OPENERS), f"{random.choice(ARTICLES)} {kind} {glyph.name}"
    if random.random() < CLASS_LAST_SHARE:
        text = f"{', '.join(before)} {opener} {' '.join(after)} {subject}"
    else:
        text = f"{opener} {' '.join(before)} {subject}, {', '.join(after)}"
    return Caption(" ".join(text.split()).strip(" ,") + ".", glyph.name, frozenset(mentioned))


def vocabulary() -> list[str]:
    """List every word that a caption can contain, once each, in a fixed order."""
    texts = [*OPENERS, *ARTICLES, *CLASSNAMES, *LETTERS]
    texts += [text for table in (KINDS, WORDINGS) for wordings in table.values() for text in wordings]
    return sorted({word for text in texts for word in text.split()})
