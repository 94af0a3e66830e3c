"""Layers that more than one network uses: attention, rotary positions, norms, feed-forward."""
