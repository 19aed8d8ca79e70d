"""The report of a finished run, from its storage alone; of several runs, a page that compares them.

usage: python jobs/report.py STORAGE [OTHER_STORAGE ...] [--labels]
"""

import argparse
import logging
import sys

from upl_ray.artifacts import Store
from upl_ray.config import ConfigError, JobError
from upl_ray.report.compare import write_comparison
from upl_ray.report.page import write_report


def main() -> int:
    """Exit status: 0 when the page is written, 2 when there is no finished run, 1 otherwise."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("upl_ray").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", nargs="+", help="storage_path of a run; the first is written to")
    parser.add_argument("--labels", action="store_true", help="export the labels of a large corpus too")
    args = parser.parse_args()
    stores = [Store(uri) for uri in args.storage]
    try:
        if len(stores) == 1:
            print(write_report(stores[0], again=True, every_label=args.labels))
        else:
            print(write_comparison(stores))
    except (ConfigError, JobError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
