"""Flow matching as plain functions without parameters: path, noise levels, solvers, guidance."""
