"""How every figure looks, and what becomes of it: SVG that follows the page's colours, PNG for slides.

Okabe and Ito's palette (2008), which colour-blind readers can tell apart; markers and line styles differ as well.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

WIDTH = 5.0  # inches: 360 units of SVG, so that text of 10 units can be read on a phone
PNG_DPI = 160
INK, MUTED, GRID = "#1b1e24", "#5a626c", "#d8dce1"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe-Ito without black and yellow
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (9, 3)), (0, (6, 1.5, 1, 1.5, 1, 1.5)))
# Colours that the page replaces by its own, which differ between light and dark.
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid"} | {c: f"series-{i + 1}" for i, c in enumerate(SERIES)}
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "upl_ray",  # equal figures make equal files
    "text.parse_math": False,  # a class name may hold dollar signs
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Figures that are made and saved inside look alike; matplotlib's own settings come back afterwards."""
    with warnings.catch_warnings(), mpl.rc_context(STYLE):  # type: ignore[arg-type]  # its type names every key
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # of a class name, in the PNG; SVG leaves it to the browser
        yield


def new_figure(height: float = 3.4) -> tuple[Figure, Axes]:
    """An empty figure of the common width [inches]."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def percent_axis(axis: Any) -> None:
    """Shares [0-1] as percentages."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{round(100 * value, 4):g} %"))


def shorten(name: str, length: int = 22) -> str:
    """A name that fits beside an axis; the data table has it in full."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    half = length // 2
    return name if len(name) <= length else f"{name[: length - half - 1]}…{name[-half:]}"


def to_png(figure: Figure) -> bytes:
    """The figure on white."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=PNG_DPI, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def to_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an element for a page: its colours are the page's variables, its ids begin with `name`.

    Args:
        figure: made within `figure_style`.
        name: unique on the page.
        title: what a screen reader says first.
        description: what it says next.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.S)  # the page has a style
    svg = re.sub(r"<[^>]*>", lambda tag: _of_the_page(tag[0], name), svg)  # never the text, which may be a class name
    labels = f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(description)}</desc>'
    opening = re.match(r"<svg[^>]*>", svg)
    assert opening is not None
    view_box = re.search(r'viewBox="[^"]*"', opening[0])
    assert view_box is not None
    start = (
        f'<svg class="figure" role="img" {view_box[0]} aria-labelledby="{name}-t {name}-d" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return start + labels + re.sub(r">\s+<", "><", svg[opening.end() :]).strip()


def _of_the_page(tag: str, name: str) -> str:
    """A tag whose ids begin with `name`, and whose colours and font are the page's."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--sans)", tag)
