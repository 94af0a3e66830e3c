"""Diffusion transformers: networks that predict the velocity of image features."""
