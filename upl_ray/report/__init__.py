"""The report of a finished run: one page that a person looks at, its figures and tables, and exports for other tools.

Everything is made from the run's storage alone, without Ray and without a model.
"""
