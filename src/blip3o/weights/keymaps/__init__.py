"""Maps between published names of weights and ours, one module for each family."""
