"""Every method on the same cached features: UPL, zero-shot in its forms, and few-shot methods where labels are given.

usage: python jobs/compare.py [FILE.yaml] [--field value ...]     without a file: the embedded demo, jobs/demo.yaml
"""

import json
import logging
import sys
from pathlib import Path

from upl_ray.command_line import load_config
from upl_ray.config import ConfigError, JobError


def main() -> int:
    """Exit status: 0 when the whole table is in storage, 2 when the configuration cannot work, 1 otherwise."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("upl_ray").setLevel(logging.INFO)
    try:
        config = load_config(sys.argv[1:], default=Path(__file__).parent / "demo.yaml")
        from upl_ray.compare import compare, report  # torch and Ray take seconds to import

        print(report(compare(config)))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        print(json.dumps({"status": "failed", "error": str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
