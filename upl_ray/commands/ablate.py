"""Ablations of a run: one change at a time over cached features, in parallel and resumable, with a table and plots.

usage: upl-ray ablate [FILE.yaml] [--field value ...]        without a file: the embedded demo
"""

from __future__ import annotations

from upl_ray.config.cli import load_config
from upl_ray.demo import locate


def main(args: list[str]) -> int:
    """Exit status: 0 when the whole table is in storage, 2 when the configuration cannot work, 1 otherwise."""
    config = load_config(args, default=locate.settings("demo.yaml"))
    from upl_ray.studies.ablate import ablate  # torch and Ray take seconds to import; a wrong field is reported before
    from upl_ray.studies.study import format_summary

    print(format_summary(ablate(config)))
    return 0
