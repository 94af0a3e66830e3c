"""DPG-Bench: questions about each image of a long prompt, which depend on each other.

Two readings of the same answers are reported. The headline counts all items and all images. The
figures `compat_ella` repeat the faults of the official program, so that published numbers can be
met (parity family `dpg`). `table` reads the questions, `official` holds the official figures, and
`benchmark` the benchmark.
"""
