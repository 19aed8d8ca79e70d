"""Every method on the same cached features: UPL, zero-shot in its forms, and few-shot methods.

The same as `upl-ray compare`; `python jobs/compare.py --help` lists its arguments.
"""

import sys

from upl_ray.commands.compare import main
from upl_ray.config.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job(lambda: main(sys.argv[1:])))
