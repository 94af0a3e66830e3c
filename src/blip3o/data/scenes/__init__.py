"""The procedural scenes data set: deterministic images with exact descriptions.

`things` holds the vocabulary, and `types` defines a scene as plain data. `scene` samples scenes,
`heldout` lists the compositions that training must not see, and `render` draws. `words`,
`captions`, `questions`, `drills`, `text_questions`, `edits` and `prompts` describe scenes. `export`
writes files.
"""
