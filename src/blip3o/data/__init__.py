"""Training data: sources, tasks, mixtures, batches, feature caches and the scenes data set."""
