"""L4: from prompts to images and texts: sampling, decoding and the user's pipeline."""
