"""From unlabeled images to an exported classifier.

usage: upl-ray run [FILE.yaml] [--field value ...]        without a file: the embedded demo
"""

from __future__ import annotations

import json

from upl_ray.config.cli import load_config
from upl_ray.demo import locate


def main(args: list[str]) -> int:
    """Exit status: 0 when everything asked for is in storage, 2 when the configuration cannot work, 1 otherwise."""
    config = load_config(args, default=locate.settings("demo.yaml"))
    from upl_ray.pipeline.main import run  # torch and Ray take seconds to import; a wrong field is reported before
    from upl_ray.pipeline.summary import headline, results_table

    summary = run(config)
    print(results_table(summary))
    print(json.dumps(headline(summary)))
    return 0
