"""Fills the templates: everything from data is escaped, and the page may load nothing and run one known script."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from upl_ray.report.cards import data_address, frames

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **context: Any) -> str:
    """A whole page, with style and script inside.

    The Content-Security-Policy names both by their hashes: markup that got in by a gap in the escaping could not run,
    and nothing at all can be sent or loaded. SVG needs style attributes, so these are allowed.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": share, "cell": cell, "data_address": data_address, "frames": frames}
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src-elem '{_hash(style)}'; style-src-attr 'unsafe-inline'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=Markup(policy), **context)


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def share(value: float | None) -> str:
    """A share [0-1] as a percentage; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f} %"


def cell(value: Any) -> str:
    """A number or text in a table."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
