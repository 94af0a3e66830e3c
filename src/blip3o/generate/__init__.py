"""L4: from prompts to pictures and texts: sampling, decoding and the user's pipeline."""
