"""Ablations of a run: one change at a time over cached features, with a table and plots.

The same as `upl-ray ablate`; `python jobs/ablate.py --help` lists its arguments.
"""

import sys

from upl_ray.commands.ablate import main
from upl_ray.config.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job(lambda: main(sys.argv[1:])))
