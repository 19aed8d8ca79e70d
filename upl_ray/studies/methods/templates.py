"""Template ensembles: which templates, and whether their prompts fit the model (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

import re

import open_clip

from upl_ray.config.classnames import has_unseen
from upl_ray.errors import ConfigError
from upl_ray.pipeline.inputs import check_prompts, read_lines
from upl_ray.upl.clip_spec import ClipSpec
from upl_ray.upl.zero_shot import fill_template

# Marks of YAML, Python, tables and notes; a comma, and quotes around the name alone, belong to templates.
ODD = re.compile(
    r"""[-*•]\s|\[|\]$|\{["']|#\s|\d+([\t,;]|[.)]\s)|.*(\t|[,;]\s*\d+$)|(["']).*\3\s*,$|(["'])(?!\{\}\4).*\4$"""
)


def read_templates(given: str | tuple[str, ...], spec: ClipSpec, classnames: tuple[str, ...]) -> tuple[str, ...]:
    """Templates with one `{}` each: open_clip's 80 for ImageNet, those of a file, or the given ones.

    Raises:
        ConfigError: the file cannot be read, a template has no single `{}` or stands twice, or a prompt does not fit.
    """
    templates = templates_of(given)
    odd = [t for t in templates if t.count("{}") != 1]
    if odd or not templates:
        problem = f"the template {odd[0]!r} needs exactly one {{}}" if odd else "it is empty"
        raise ConfigError(f"compare.templates: {problem}; write for example 'a photo of a {{}}.'")
    if doubled := next((t for t in templates if templates.count(t) > 1), None):
        raise ConfigError(f"compare.templates: {doubled!r} stands twice, and would weigh double; keep one of them.")
    if unseen := next(filter(has_unseen, templates), None):
        raise ConfigError(f"compare.templates: {unseen!a} holds a character that cannot be seen; type it again.")
    for template in templates:
        check_prompts(spec, fill_template(template, classnames))
    return templates


def templates_of(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """Templates of a file, of a list, or open_clip's; not checked."""
    if isinstance(given, tuple):
        return given
    if given == "imagenet":
        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    templates = tuple(filter(None, map(str.strip, read_lines("compare.templates", given, "a list or `imagenet`"))))
    if odd := next(filter(ODD.match, templates), None):
        raise ConfigError(f"compare.templates {given!r} holds {odd!r}; write templates alone, one a line, or a list.")
    return templates
