"""Flow matching as plain functions: path, noise levels, solvers, guidance. Nothing learned."""
