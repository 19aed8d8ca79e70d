"""A finished classifier as one file that needs neither this package nor torch.

The same as `upl-ray export`; `python jobs/export.py --help` lists its arguments.
"""

import sys

from upl_ray.commands.export import main
from upl_ray.config.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job(lambda: main(sys.argv[1:])))
