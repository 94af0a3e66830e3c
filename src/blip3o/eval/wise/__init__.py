"""WISE: world knowledge in text to image, scored by a judge. Two benchmarks share the name.

`versions` holds their facts, `official` the reading and the tables of the official programs,
`wording` our texts for the judge, and `benchmark` the two benchmarks.
"""
