"""Which images there are, and their bytes."""
