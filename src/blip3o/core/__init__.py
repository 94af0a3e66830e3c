"""L0: what every layer may use: errors, config, registry, types, rng, device, log."""
