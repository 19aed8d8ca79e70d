"""The selected images of each class as cards: thumbnails, numbers, and a table of the images."""

from __future__ import annotations

import base64
import json
import zlib
from collections import defaultdict
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import numpy as np

from upl_ray.corpus.shards import Corpus
from upl_ray.report.findings import Findings
from upl_ray.report.thumbnails import COLUMNS, Sprite, Wanted, limited, load_sprites

# Bytes of a page, measured on 2,000 cards; it stays below 10 MB, which mail programs and browsers accept.
PAGE_BYTES = 9_500_000
OTHER_BYTES = 1_000_000  # figures, tables, style
CARD_BYTES, NAMES_OF_CARD = 900, 5  # markup of a card, and how often it repeats the name of its class
ROW_BYTES = 90  # numbers and frame of an image, without its id
TILE_BYTES = 160  # of the smallest thumbnail
MOST_SPRITE_BYTES = 4_500_000
MAX_CARDS = 4_000

LOOKS = ("doubtful", "least_known")  # sprites of the images to look at first, by the exported variant
SAMPLED_TILES = 16  # of a class, where the selection is a sample of any size

RowsOfClass = dict[int, list[dict[str, Any]]]  # class -> its selected images by rank


@dataclass(frozen=True)
class Card:
    """One class of one variant."""

    variant: str  # slug
    label: int
    classname: str
    refined: bool  # see `Findings.refined`
    images: int  # selected
    predicted: int  # images of the corpus with this pseudo-label
    confidence: tuple[float, float] | None  # of the selected images, highest and lowest
    labelers_agree: float | None  # mean over the selected images; None with one labeler
    members_agree: float | None
    right: int | None  # selected images whose true label is the class, of `known`
    known: int
    shown: bool = True  # on the page; the tables have all
    sprite: Sprite | None = None
    wrong: tuple[int, ...] = ()  # positions of tiles whose true label is another class

    @property
    def agreement(self) -> float:
        """Agreement of labelers, or of members if there is one labeler; cards are ordered by it."""
        value = self.members_agree if self.labelers_agree is None else self.labelers_agree
        return 1.0 if value is None else value

    @property
    def few(self) -> int:
        """Cards of few images come first; a class' share of a sample says nothing, unless there is none."""
        return min(self.images, 1) if self.refined else self.images

    @property
    def source(self) -> str:
        """The picture as a data address."""
        assert self.sprite is not None
        return data_address(self.sprite)


def data_address(sprite: Sprite) -> str:
    """A `data:` address that contains the picture."""
    return "data:image/webp;base64," + base64.b64encode(sprite.webp).decode()


def by_class(found: Findings) -> RowsOfClass:
    """The selected images of each class, the most confident first."""
    rows: RowsOfClass = defaultdict(list)
    for row in found.selected:
        rows[row["pseudo_label"]].append(row)
    return {label: sorted(of, key=lambda r: int(r["rank"])) for label, of in rows.items()}


def _tiles_by_class(found: Findings) -> RowsOfClass:
    """Those with a thumbnail, where there is room for it: the most confident ones, or of a sample some by chance."""
    rows = by_class(found)
    if not found.refined:
        return rows
    return {label: sorted(of, key=_by_chance)[:SAMPLED_TILES] for label, of in rows.items()}


def _by_chance(row: dict[str, Any]) -> int:
    return zlib.crc32(row["image_id"].encode())


def make_cards(found: list[Findings], names: tuple[str, ...], corpus: Corpus) -> tuple[list[Card], dict[str, Sprite]]:
    """Cards of every variant and class, and the sprites of other images: `<slug> changed`, and `LOOKS`.

    Cards that need a look come first: starved classes, then those of least agreement. A page shows MAX_CARDS; the
    others are in the tables only.
    """
    rows, tiles = ({f.slug: of(f) for f in found} for of in (by_class, _tiles_by_class))
    bare = [_card(f, c, name, rows[f.slug].get(c, [])) for f in found for c, name in enumerate(names)]
    order = {f.slug: i for i, f in enumerate(found)}
    bare.sort(key=lambda card: (order[card.variant], card.few, card.agreement, card.label))
    fair = sorted(bare, key=lambda card: (card.few, card.agreement))[:MAX_CARDS]
    wanted: Wanted = {f"{f.slug} changed": _places(f.corpus["examples"]) for f in found}
    wanted |= {name: _places(found[0].corpus.get(name, [])) for name in LOOKS}
    wanted |= {f"{c.variant} {c.label}": _places(tiles[c.variant].get(c.label, [])) for c in fair}
    wanted, budget = _fitted({key: places for key, places in wanted.items() if places}, fair, names)
    sprites = load_sprites(corpus, wanted, budget)
    shown = {(c.variant, c.label) for c in fair}
    bare = [replace(c, shown=(c.variant, c.label) in shown) for c in bare]
    cards = [_with_sprite(c, tiles[c.variant].get(c.label, []), sprites.get(f"{c.variant} {c.label}")) for c in bare]
    others = {*LOOKS, *(f"{f.slug} changed" for f in found)}
    return cards, {key: sprites[key] for key in sorted(others & sprites.keys())}


def _fitted(wanted: Wanted, cards: list[Card], names: tuple[str, ...]) -> tuple[Wanted, int]:
    """The tiles that fit into a page, and the bytes left for their pictures (base64 adds a third).

    Both depend on names and ids only, so that a rebuilt page finds its thumbnails in storage.
    """
    fixed = OTHER_BYTES + sum(len(json.dumps(name)) for name in names)
    fixed += sum(CARD_BYTES + NAMES_OF_CARD * len(escape(c.classname).encode()) for c in cards)
    ids = [len(json.dumps(image_id)) for of in wanted.values() for _, image_id in of]
    row = ROW_BYTES + sum(ids) / max(len(ids), 1)
    wanted = limited(wanted, int((PAGE_BYTES - fixed) / (row + TILE_BYTES)))
    left = PAGE_BYTES - fixed - row * sum(map(len, wanted.values()))
    return wanted, max(min(MOST_SPRITE_BYTES, int(left * 3 / 4)), 0)


def _places(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["shard"], row["image_id"]) for row in rows]


def _card(f: Findings, label: int, classname: str, rows: list[dict[str, Any]]) -> Card:
    known = [r for r in rows if r["true_label"] is not None]
    several = len(f.variant.labelers) > 1
    return Card(
        variant=f.slug,
        label=label,
        classname=classname,
        refined=f.refined,
        images=len(rows),
        predicted=f.corpus["predicted"]["fused"][label],
        confidence=(rows[0]["confidence"], rows[-1]["confidence"]) if rows else None,
        labelers_agree=float(np.mean([r["labelers_agree"] for r in rows])) if rows and several else None,
        members_agree=float(np.mean([r["members_agree"] for r in rows])) if rows else None,
        right=sum(r["true_label"] == label for r in known) if known else None,
        known=len(known),
    )


def _with_sprite(card: Card, rows: list[dict[str, Any]], sprite: Sprite | None) -> Card:
    shown = rows[: sprite.tiles if sprite else 0]
    wrong = tuple(i for i, r in enumerate(shown) if r["true_label"] not in (None, card.label))
    return replace(card, sprite=sprite, wrong=wrong)


def frames(wrong: tuple[int, ...]) -> list[tuple[int, int]]:
    """Column and row of tiles."""
    return [(i % COLUMNS, i // COLUMNS) for i in wrong]


def image_rows(found: list[Findings], cards: list[Card]) -> dict[str, dict[int, list[list[Any]]]]:
    """Id, confidence, agreements and true class of the images with thumbnails, by variant and class, for the script.

    The page's size does not depend on K: the other images are in the tables only.
    """
    rows: dict[str, dict[int, list[list[Any]]]] = {f.slug: {} for f in found}
    of_class = {f.slug: _tiles_by_class(f) for f in found}
    for card in cards:
        if card.sprite:
            shown = of_class[card.variant][card.label][: card.sprite.tiles]
            rows[card.variant][card.label] = [_image_row(r, card.labelers_agree is not None) for r in shown]
    return rows


def look_rows(exported: Findings, sprites: dict[str, Sprite]) -> dict[str, list[list[Any]]]:
    """The same, and behind it the pseudo-label and `known`, of the images to look at first."""
    several, rows = len(exported.variant.labelers) > 1, {}
    for name in LOOKS:
        shown = exported.corpus[name][: sprites[name].tiles] if name in sprites else []
        rows[name] = [[*_image_row(r, several), r["pseudo_label"], r.get("known")] for r in shown]
    return rows


def _image_row(r: dict[str, Any], several: bool) -> list[Any]:
    labelers = round(r["labelers_agree"], 3) if several else None
    return [r["image_id"], round(r["confidence"], 4), labelers, round(r["members_agree"], 3), r["true_label"]]
