"""Every method on the same cached features: UPL, zero-shot in its forms, and few-shot methods where labels are given.

usage: upl-ray compare [FILE.yaml] [--field value ...]        without a file: the embedded demo
"""

from __future__ import annotations

from upl_ray.config.cli import load_config
from upl_ray.demo import locate


def main(args: list[str]) -> int:
    """Exit status: 0 when the whole table is in storage, 2 when the configuration cannot work, 1 otherwise."""
    config = load_config(args, default=locate.settings("demo.yaml"))
    from upl_ray.studies.compare import NOTES, compare  # torch and Ray take seconds to import
    from upl_ray.studies.study import format_summary

    print(format_summary(compare(config), NOTES))
    return 0
