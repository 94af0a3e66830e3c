"""L4: the one Trainer and what it stands on: optimizer, EMA, checkpoints, callbacks, curves."""
