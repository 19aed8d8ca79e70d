"""Template ensembles: which templates, and whether their prompts fit the model (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import open_clip

from upl_ray.errors import ConfigError, first_line
from upl_ray.pipeline.inputs import check_prompts
from upl_ray.storage.store import UNREACHABLE, read_text
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.zero_shot import fill_template


def read_templates(given: str | tuple[str, ...], spec: ClipSpec, classnames: tuple[str, ...]) -> tuple[str, ...]:
    """Templates with one `{}` each: open_clip's 80 for ImageNet, those of a file, or the given ones.

    Raises:
        ConfigError: the file cannot be read, a template has no single `{}`, or a prompt does not fit the model.
    """
    templates = templates_of(given)
    odd = [t for t in templates if t.count("{}") != 1]
    if odd or not templates:
        problem = f"the template {odd[0]!r} needs exactly one {{}}" if odd else "it is empty"
        raise ConfigError(f"compare.templates: {problem}; write for example 'a photo of a {{}}.'")
    for template in templates:
        check_prompts(spec, fill_template(template, classnames))
    return templates


def templates_of(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """Templates of a file, of a list, or open_clip's; not checked."""
    if isinstance(given, tuple):
        return given
    if given == "imagenet":
        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    try:
        text = read_text(given)
    except UNREACHABLE as error:
        raise ConfigError(
            f"compare.templates {given!r} cannot be read ({first_line(error)}); give a text file, a list or `imagenet`."
        ) from None
    return tuple(line.strip() for line in text.split("\n") if line.strip())
