"""Our own texts for the judge of WISE, for users without the official ones (no licence)."""

PLACES = ("{prompt}", "{explanation}")

SYSTEM = (
    "You grade generated images. You look closely, report faults, and never give the benefit of "
    "the doubt."
)

LEGACY = """\
Grade the image on three scales. Each grade is 0, 1 or 2.

Consistency: does the image show the thing that the prompt means? The explanation says what a \
correct image contains.
0: it shows something else, or misses the point of the explanation.
1: it shows a part of it, or shows it with an error.
2: it shows all of it without an error.

Realism: could the scene exist as it is drawn?
0: shapes, materials or light are impossible, or it looks like a rough drawing by mistake.
1: it is believable at first sight and has visible errors.
2: form, light, materials and space are right throughout.

Aesthetic Quality: is it a good image?
0: badly composed, blurred or damaged.
1: ordinary.
2: clear composition, colors in harmony, details well made.

Give a 2 only if you find no fault. Answer with three lines and nothing else:
Consistency: GRADE
Realism: GRADE
Aesthetic Quality: GRADE

PROMPT: "{prompt}"
EXPLANATION: "{explanation}"
"""

VERIFIED = """\
Decide whether the image shows the thing that the prompt means. The explanation says what a \
correct image contains. The score is 1 if the image shows all of it without an error, else 0.

Answer with one line and nothing else:
Score: 0 or 1

PROMPT: "{prompt}"
EXPLANATION: "{explanation}"
"""
