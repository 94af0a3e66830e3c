"""Our texts for the judge of GEdit-Bench."""

OWN_SEMANTICS = """\
The first image is the original, the second image is an edit of it. The instruction was:
{instruction}

Give two grades from 0 (worst) to 10 (best).
First: how completely does the second image do what the instruction asks for?
Second: how well does everything stay that the instruction does not mention?

Answer with one JSON object and nothing else:
{"score": [first, second], "reasoning": "one sentence"}
"""

OWN_QUALITY = """\
Look at the image alone. Give two grades from 0 (worst) to 10 (best).
First: how natural is it? Light, shadows, sizes and distances belong to one scene.
Second: how free of damage is it? No smears, seams, broken faces, hands or letters.

Answer with one JSON object and nothing else:
{"score": [first, second], "reasoning": "one sentence"}
"""
