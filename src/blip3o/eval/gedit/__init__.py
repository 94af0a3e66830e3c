"""GEdit-Bench: edits in English and Chinese, judged for semantics and quality.

Sources: parity family `gedit`; stepfun-ai/Step1X-Edit. The data are on the hub; users export them.
`statistics` has the tables of all figures, `official` the reading of the official program,
`reading` ours, `wording` our texts for the judge, `layout` the folders, and `benchmark` the rest.
"""
