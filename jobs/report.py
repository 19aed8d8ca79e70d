"""The report of a finished run, from its storage alone; of several runs, a page that compares them.

The same as `upl-ray report`; `python jobs/report.py --help` lists its arguments.
"""

import sys

from upl_ray.commands.report import main
from upl_ray.config.cli import run_job

if __name__ == "__main__":
    sys.exit(run_job(lambda: main(sys.argv[1:])))
