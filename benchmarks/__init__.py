"""Benchmarks: both sides in one interleaved run, medians, a table and one line of JSON. Run with `make bench`."""
