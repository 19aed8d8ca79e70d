"""The steps of a run, one module each, and the two jobs that order them: `main` and `nightly`."""
