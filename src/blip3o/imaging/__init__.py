"""L1: images between files, PIL, tensors and contact sheets; PIL and numpy only, no models."""
