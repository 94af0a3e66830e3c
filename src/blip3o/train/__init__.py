"""L4: the Trainer and its parts: optimizer, averages, checkpoints, callbacks, profiler."""
