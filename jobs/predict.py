"""The nightly job: label the new images of a growing corpus with a finished classifier.

The same as `upl-ray predict`; `python jobs/predict.py --help` lists its arguments.
"""

import sys

from upl_ray.commands.predict import main
from upl_ray.config.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job(lambda: main(sys.argv[1:])))
