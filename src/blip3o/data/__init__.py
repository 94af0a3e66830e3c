"""Data: sources, tasks, mixtures, collation and the procedural scenes data set."""
