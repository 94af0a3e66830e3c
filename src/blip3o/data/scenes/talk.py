"""Small talk, and questions that no image answers: each has one fitting sentence."""

import numpy as np

from blip3o.data.scenes.frames import Wording, frames, kinds
from blip3o.data.scenes.question_forms import Say
from blip3o.data.scenes.questions import QA
from blip3o.data.scenes.types import Scene
from blip3o.data.scenes.words import pick, shuffled

TOPICS: tuple[str, ...] = tuple(
    name.removeprefix("talk ") for name in kinds("questions") if name.startswith("talk ")
)
"""Topics of small talk; "unknown" is about facts that an image does not show."""


def talk(topic: str, rng: np.random.Generator, wording: Wording, scene: Scene | None = None) -> QA:
    """Returns something that people say about a topic, and the sentence that fits.

    Args:
        topic: one of TOPICS.
        rng: source of the random choices.
        wording: the frames to use.
        scene: the scene of the image that the words may name a thing of; only the topic "unknown"
            needs one.
    """
    words = pick(rng, frames("questions", f"talk {topic}", wording))
    if scene is not None:
        say = Say(rng=rng, is_plain=wording == "template")
        words = words.format(name=say.noun(pick(rng, scene.objects).thing))
    (answer,) = frames("questions", f"say {topic}", "template")
    return QA(kind="talk", question=words, answer=answer)


def talk_about(scene: Scene, rng: np.random.Generator) -> QA:
    """Returns a turn of training without a use for the image; half ask for what it cannot show."""
    topic = "unknown" if rng.random() < 0.5 else pick(rng, TOPICS)
    return talk(topic, rng, "train", scene)


def small_talk(rng: np.random.Generator) -> list[QA]:
    """Returns two or three turns of training without an image."""
    topics = [topic for topic in TOPICS if topic != "unknown"]
    return [talk(topic, rng, "train") for topic in shuffled(rng, topics)[: int(rng.integers(2, 4))]]
