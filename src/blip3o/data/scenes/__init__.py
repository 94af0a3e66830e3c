"""The procedural scenes data set: deterministic images with exact words for what they show.

`things` and `backgrounds` are the vocabulary, `types` a scene as plain data, `scene` samples
scenes, `heldout` keeps compositions back from training, `render` draws, `captions`, `questions`,
`drills` (both out of `asking`), `text_questions`, `edits` and `prompts` put scenes into words,
`export` writes files.
"""
