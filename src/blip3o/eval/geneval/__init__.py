"""GenEval: object counts, colors and places in images, judged by a detector (arXiv 2310.11513)."""
