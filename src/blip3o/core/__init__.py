"""L0, used by every layer: errors, config, registry, data types, rng, device, files, log."""
