"""Everything that talks to Ray about nodes: joining, watching, checking, placing actors."""

import os

# Under `uv run` Ray would pack the working folder for every worker, even of a Ray that is on this machine alone.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
