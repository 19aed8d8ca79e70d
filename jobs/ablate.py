"""Ablations of a run: one change at a time over cached features, in parallel and resumable, with a table and plots.

usage: python jobs/ablate.py [FILE.yaml] [--field value ...]      without a file: the embedded demo, jobs/demo.yaml
"""

import sys
from pathlib import Path

from upl_ray.config.cli import load_config, run_job


def main() -> int:
    """Exit status: 0 when the whole table is in storage, 2 when the configuration cannot work, 1 otherwise."""
    config = load_config(sys.argv[1:], default=Path(__file__).parent / "demo.yaml")
    from upl_ray.studies.ablate import ablate  # torch and Ray take seconds to import; a wrong field is reported before
    from upl_ray.studies.study import format_summary

    print(format_summary(ablate(config)))
    return 0


if __name__ == "__main__":
    sys.exit(run_job(main))
