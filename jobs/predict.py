"""The nightly job: label the new images of a growing corpus with a finished classifier.

usage: python jobs/predict.py CLASSIFIER CORPUS [--field value ...]
       python jobs/predict.py [FILE.yaml] [--field value ...]        without a file: the demo's, jobs/predict.yaml
"""

import json
import sys
from pathlib import Path

from upl_ray.config.cli import load_predict, run_job


def main() -> int:
    """Exit status: 0 when all images are labeled, 2 when the configuration cannot work, 1 otherwise."""
    job = load_predict(sys.argv[1:], default=Path(__file__).parent / "predict.yaml")
    from upl_ray.pipeline.nightly import run  # torch and Ray take seconds to import; a wrong field is reported before

    summary = run(job)
    print(json.dumps(summary))
    return 1 if summary["alerts"] and job.drift.fail else 0


if __name__ == "__main__":
    sys.exit(run_job(main))
