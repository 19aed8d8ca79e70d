"""The commands of `upl-ray` and of `jobs/*.py`: each reads its arguments, calls one function, and prints the result."""
