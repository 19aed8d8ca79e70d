"""Thumbnails of images, several in one WebP picture (a sprite), which is far smaller than a picture of each.

They are made once from the corpus and stored, so that a report can be rebuilt without the corpus.
Shapes: t tile width and height.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps

from upl_ray.corpus.read import read_images
from upl_ray.corpus.shards import Corpus, Shard
from upl_ray.errors import first_line
from upl_ray.storage.step import Step
from upl_ray.storage.store import read_ahead
from upl_ray.upl import images, rejection

COLUMNS = 8  # tiles in a row of a sprite
MAX_TILES = 16_000  # of a page: 1,000 classes of 16 images
MAX_TILES_OF_SPRITE = 64
IMAGES_PER_TASK = 64  # images whose bytes are held together
TASKS_AHEAD = 4
SIZES = ((2_000, 96), (8_000, 64), (MAX_TILES, 48))  # most tiles, and the size of a tile [pixels]
# Sizes of a tile [pixels] with WebP qualities, in the order in which they are tried.
ATTEMPTS = ((96, 80), (96, 60), (64, 60), (64, 45), (48, 50), (48, 35), (40, 35), (40, 25), (32, 25), (24, 20))
SAMPLE = 32  # sprites that are encoded to estimate the size of all
COLUMN_TYPES = pa.schema(
    [
        ("key", pa.string()),
        ("tiles", pa.int32()),
        ("tile", pa.int32()),  # width and height of a tile [pixels]
        ("missing", pa.string()),  # JSON: position of a tile -> reason why there is no thumbnail
        ("webp", pa.binary()),
    ]
)

Tile = images.Crop | str  # uint8 [t, t, 3], or the reason why there is none
Wanted = dict[str, list[tuple[str, str]]]  # sprite -> (shard id, image id) of its tiles


@dataclass(frozen=True)
class Sprite:
    """Several thumbnails in one picture, in rows of COLUMNS."""

    webp: bytes
    tiles: int
    tile: int  # width and height of a tile [pixels]
    missing: dict[int, str]  # position -> reason why there is no thumbnail

    @property
    def rows(self) -> int:
        """Rows of tiles."""
        return math.ceil(self.tiles / COLUMNS)

    @property
    def columns(self) -> int:
        """Tiles of the first row."""
        return min(self.tiles, COLUMNS)


def load_sprites(corpus: Corpus, wanted: Wanted, budget: int) -> dict[str, Sprite]:
    """The stored sprites, or else new ones, which are stored unless the corpus cannot be reached.

    Args:
        corpus: the corpus that the images belong to.
        wanted: images of each sprite.
        budget: bytes of all sprites; tiles are as large and good as it allows.
    """
    store = corpus.step.store
    step = Step.of(store, "thumbnails", version=2, inputs={"wanted": wanted, "budget": budget})
    if step.finished:
        return _read(step)
    tiles, reached = _tiles(corpus, wanted)
    sprites = {
        key: Sprite(webp, len(tiles_of), size, {i: t for i, t in enumerate(tiles_of) if isinstance(t, str)})
        for key, tiles_of, webp, size in within({k: [tiles[i] for _, i in of] for k, of in wanted.items()}, budget)
    }
    if reached:
        _write(step, sprites)
    return sprites


def limited(wanted: Wanted, most: int) -> Wanted:
    """The first tiles of each sprite: at most `most` in all, but at least one each."""
    longest = min(MAX_TILES_OF_SPRITE, max((len(of) for of in wanted.values()), default=0))
    while longest > 1 and sum(min(len(of), longest) for of in wanted.values()) > min(most, MAX_TILES):
        longest -= 1
    return {key: of[:longest] for key, of in wanted.items()}


def _read(step: Step) -> dict[str, Sprite]:
    rows = step.read_table("sprites.parquet").to_pylist()
    return {
        r["key"]: Sprite(r["webp"], r["tiles"], r["tile"], {int(i): w for i, w in json.loads(r["missing"]).items()})
        for r in rows
    }


def _write(step: Step, sprites: dict[str, Sprite]) -> None:
    rows = [
        {"key": k, "tiles": s.tiles, "tile": s.tile, "missing": json.dumps(s.missing), "webp": s.webp}
        for k, s in sprites.items()
    ]
    files = step.write_file("sprites.parquet", pa.Table.from_pylist(rows, schema=COLUMN_TYPES))
    step.finish(files=files, sprites=len(rows), bytes=sum(len(s.webp) for s in sprites.values()))


def _tiles(corpus: Corpus, wanted: Wanted) -> tuple[dict[str, Tile], bool]:
    """A tile or a reason for each image id, and whether all of the corpus could be reached."""
    pairs = sorted({pair for of in wanted.values() for pair in of})
    size = next((t for most, t in SIZES if len(pairs) <= most), SIZES[-1][1])
    shards = {s.id: s for s in corpus.shards}
    found: dict[str, Tile] = {image_id: "no longer listed" for shard, image_id in pairs if shard not in shards}
    there = [pair for pair in pairs if pair[0] in shards]
    reached = True
    read = read_ahead(_groups(there, shards), lambda group: _read_group(corpus, *group, size), TASKS_AHEAD)
    for tiles, answered in read:
        found |= tiles
        reached &= answered
    return found, reached


def _groups(pairs: Iterable[tuple[str, str]], shards: dict[str, Shard]) -> Iterator[tuple[Shard, list[str]]]:
    for shard, of_shard in itertools.groupby(pairs, key=lambda pair: pair[0]):
        ids = [image_id for _, image_id in of_shard]
        for first in range(0, len(ids), IMAGES_PER_TASK):
            yield shards[shard], ids[first : first + IMAGES_PER_TASK]


def _read_group(corpus: Corpus, shard: Shard, ids: list[str], size: int) -> tuple[dict[str, Tile], bool]:
    listing = corpus.listing(shard)
    listing = listing.filter(pc.field("image_id").isin(ids))
    try:
        data = read_images(shard.root, listing)
    except (OSError, RuntimeError) as error:  # unreachable or changed: a report is useful without pictures
        return dict.fromkeys(ids, f"the corpus could not be read: {first_line(error)}"), False
    names = listing["image_id"].to_pylist()
    return {i: make_tile(d, size) for i, d in zip(names, data, strict=True)}, True


def make_tile(data: bytes | str, size: int) -> Tile:
    """The centre square of an image [t, t, 3], as most models crop it; or the reason why there is none."""
    if isinstance(data, str):
        return data
    try:
        image = images.decode(data)
        return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS))
    except rejection.Rejected as error:
        return str(error)
    except (OSError, ValueError) as error:
        return f"cannot be shown: {first_line(error)}"


def within(tiles: dict[str, list[Tile]], budget: int) -> Iterator[tuple[str, list[Tile], bytes, int]]:
    """All sprites at the best size and quality within `budget` [bytes]: (key, tiles, WebP, size of a tile)."""
    keys = [key for key, of in tiles.items() if of]
    sample = keys[:: max(1, len(keys) // SAMPLE)]
    largest = max((t.shape[0] for of in tiles.values() for t in of if not isinstance(t, str)), default=48)
    attempts = [a for a in ATTEMPTS if a[0] <= largest]
    for size, quality in attempts:
        last = (size, quality) == attempts[-1]
        estimate = sum(len(encode(tiles[k], size, quality)) for k in sample) * len(keys) / max(len(sample), 1)
        if estimate > budget and not last:
            continue
        encoded = {k: encode(tiles[k], size, quality) for k in keys}
        if sum(map(len, encoded.values())) <= budget or last:
            yield from ((k, tiles[k], webp, size) for k, webp in encoded.items())
            return


def encode(tiles: list[Tile], size: int, quality: int) -> bytes:
    """The tiles of one sprite as WebP; a crossed grey square stands for an image without thumbnail."""
    columns = min(len(tiles), COLUMNS)
    full = len(tiles) % columns == 0
    canvas = Image.new("RGB" if full else "RGBA", (columns * size, math.ceil(len(tiles) / COLUMNS) * size))
    for i, tile in enumerate(tiles):
        picture = _placeholder(size) if isinstance(tile, str) else Image.fromarray(tile)
        if picture.size != (size, size):
            picture = picture.resize((size, size), Image.Resampling.LANCZOS)
        canvas.paste(picture, (i % COLUMNS * size, i // COLUMNS * size))
    out = io.BytesIO()
    canvas.save(out, "WEBP", quality=quality, method=4)
    return out.getvalue()


def _placeholder(size: int) -> Image.Image:
    cross = np.full((size, size, 3), 128, np.uint8)
    diagonal = np.arange(size)
    cross[diagonal, diagonal] = cross[diagonal, size - 1 - diagonal] = 220
    return Image.fromarray(cross)
