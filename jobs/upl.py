"""The main job: from unlabeled images to an exported classifier.

usage: python jobs/upl.py [FILE.yaml] [--field value ...]        without a file: the embedded demo, jobs/demo.yaml
"""

import json
import sys
from pathlib import Path

from upl_ray.config.cli import load_config, run_job


def main() -> int:
    """Exit status: 0 when everything asked for is in storage, 2 when the configuration cannot work, 1 otherwise."""
    config = load_config(sys.argv[1:], default=Path(__file__).parent / "demo.yaml")
    from upl_ray.pipeline.main import run  # torch and Ray take seconds to import; a wrong field is reported before
    from upl_ray.pipeline.summary import headline, results_table

    summary = run(config)
    print(results_table(summary))
    print(json.dumps(headline(summary)))
    return 0


if __name__ == "__main__":
    sys.exit(run_job(main))
