"""Every method on the same cached features: UPL, zero-shot in its forms, and few-shot methods where labels are given.

usage: python jobs/compare.py [FILE.yaml] [--field value ...]     without a file: the embedded demo, jobs/demo.yaml
"""

import sys
from pathlib import Path

from upl_ray.config.cli import load_config, run_job


def main() -> int:
    """Exit status: 0 when the whole table is in storage, 2 when the configuration cannot work, 1 otherwise."""
    config = load_config(sys.argv[1:], default=Path(__file__).parent / "demo.yaml")
    from upl_ray.studies.compare import NOTES, compare  # torch and Ray take seconds to import
    from upl_ray.studies.study import format_summary

    print(format_summary(compare(config), NOTES))
    return 0


if __name__ == "__main__":
    sys.exit(run_job(main))
