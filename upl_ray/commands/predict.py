"""Label the new images of a growing corpus with a finished classifier, every night.

usage: upl-ray predict CLASSIFIER CORPUS [--field value ...]
       upl-ray predict [FILE.yaml] [--field value ...]        without a file: the embedded demo's
"""

from __future__ import annotations

import json

from upl_ray.config.cli import load_predict
from upl_ray.demo import locate


def main(args: list[str]) -> int:
    """Exit status: 0 when all images are labeled, 2 when the configuration cannot work, 1 otherwise."""
    job = load_predict(args, default=locate.settings("predict.yaml"))
    from upl_ray.pipeline.nightly import run  # torch and Ray take seconds to import; a wrong field is reported before

    summary = run(job)
    print(json.dumps(summary))
    return 1 if summary["alerts"] and job.drift.fail else 0
