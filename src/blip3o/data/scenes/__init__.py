"""The procedural scenes data set: deterministic images with exact descriptions.

`things` holds the vocabulary, and `types` defines a scene as plain data. `scene` samples scenes,
`heldout` lists the compositions that training must not see, and `render` draws. `frames` reads
hand-written wordings, and `synonyms` holds other names. `words`, `captions`, `question_forms`,
`questions`, `text_questions`, `talk`, `edits` and `prompts` describe scenes. `export` writes files.
"""
