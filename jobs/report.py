"""The report of a finished run, from its storage alone; of several runs, a page that compares them.

usage: python jobs/report.py STORAGE [OTHER_STORAGE ...] [--labels]
"""

import argparse
import sys

from upl_ray.config.cli import run_job
from upl_ray.config.redact import reject_secrets
from upl_ray.report.compare import write_comparison
from upl_ray.report.page import write_report
from upl_ray.storage.store import Store


def main() -> int:
    """Exit status: 0 when the page is written, 2 when there is no finished run, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage", nargs="+", help="storage_path of a run; the first is written to")
    parser.add_argument("--labels", action="store_true", help="export the labels of a large corpus too")
    args = parser.parse_args(reject_secrets(sys.argv[1:]))
    stores = [Store(uri) for uri in args.storage]
    one = len(stores) == 1
    print(write_report(stores[0], again=True, every_label=args.labels) if one else write_comparison(stores))
    return 0


if __name__ == "__main__":
    sys.exit(run_job(main))
