"""L0: what every layer may use and nothing else: errors, config, registry, types, rng, device, log."""
