"""The main job: from unlabeled images to an exported classifier.

The same as `upl-ray run`; `python jobs/upl.py --help` lists its arguments.
"""

import sys

from upl_ray.commands.run import main
from upl_ray.config.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job(lambda: main(sys.argv[1:])))
