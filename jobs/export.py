"""A finished classifier as one file that needs neither this package nor torch.

usage: python jobs/export.py RUN --to onnx [--out FILE]
"""

import argparse
import json
import sys

from upl_ray.config.cli import run_job
from upl_ray.config.redact import reject_secrets


def main() -> int:
    """Exit status: 0 when the file is checked and written, 2 when that cannot work, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="storage_path of a finished run, or a classifier's folder")
    parser.add_argument("--to", required=True, choices=["onnx"], help="format of the file")
    parser.add_argument("--out", metavar="FILE", default="", help="default: classifier.onnx in the classifier's folder")
    args = parser.parse_args(reject_secrets(sys.argv[1:]))
    from upl_ray.upl.onnx_export import export_onnx  # torch takes seconds to import; a wrong option is reported before

    print(json.dumps({"status": "done", **export_onnx(args.run, args.out)}))
    return 0


if __name__ == "__main__":
    sys.exit(run_job(main))
