"""A finished classifier as one file that needs neither this package nor torch.

usage: upl-ray export RUN --to onnx [--out FILE]
"""

from __future__ import annotations

import argparse
import json

from upl_ray.config.redact import reject_secrets


def main(args: list[str]) -> int:
    """Exit status: 0 when the file is checked and written, 2 when that cannot work, 1 otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", metavar="RUN", help="storage_path of a finished run, or a classifier's folder")
    parser.add_argument("--to", required=True, choices=["onnx"], help="format of the file")
    parser.add_argument("--out", metavar="FILE", default="", help="default: classifier.onnx in the classifier's folder")
    options = parser.parse_args(reject_secrets(args))
    from upl_ray.upl.onnx_export import export_onnx  # torch takes seconds to import; a wrong option is reported before

    print(json.dumps({"status": "done", **export_onnx(options.run, options.out)}))
    return 0
