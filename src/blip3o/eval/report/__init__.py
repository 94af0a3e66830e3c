"""Reports of evaluations: intervals, doubts, comparisons by item, text tables and an HTML page.

Everything here is a function of the files that an evaluation leaves in its folder.
"""
