"""Is it better? Comparison of methods and ablation of the configured run."""
