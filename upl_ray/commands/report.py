"""The report of a finished run, from its storage alone; of several runs, a page that compares them.

usage: upl-ray report STORAGE [OTHER_STORAGE ...] [--labels]
"""

from __future__ import annotations

import argparse

from upl_ray.config.redact import reject_secrets


def main(args: list[str]) -> int:
    """Exit status: 0 when the page is written, 2 when there is no finished run, 1 otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("storage", nargs="+", help="storage_path of a run; the first is written to")
    parser.add_argument("--labels", action="store_true", help="export the labels of a large corpus too")
    options = parser.parse_args(reject_secrets(args))
    from upl_ray.report.compare import write_comparison  # matplotlib takes a second to import
    from upl_ray.report.page import write_report
    from upl_ray.storage.store import Store

    stores = [Store(uri) for uri in options.storage]
    if len(stores) > 1:
        print(write_comparison(stores))
    else:
        print(write_report(stores[0], again=True, every_label=options.labels))
    return 0
