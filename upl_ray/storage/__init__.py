"""Where results lie: a folder or bucket, content-addressed steps in it, the types of their tables."""
