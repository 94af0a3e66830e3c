"""The summary of GenEval's own program: its figures, and the text that it prints.

It knows only the images that were judged: missing images, prompts and tags change nothing.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping


@dataclasses.dataclass(frozen=True)
class ResultLine:
    """The facts about one image that the summary reads.

    Args:
        tag: task of the prompt.
        metadata: line of the prompt file; equal lines are one prompt.
        is_correct: verdict on the image.
    """

    tag: str
    metadata: str
    is_correct: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of GenEval.

    Args:
        total_images: number of images.
        total_prompts: number of different prompts.
        correct_images: share of right images.
        correct_prompts: share of prompts of which any image is right.
        tasks: right images and all images of each tag, in the order of the first images.
    """

    total_images: int
    total_prompts: int
    correct_images: float
    correct_prompts: float
    tasks: Mapping[str, tuple[int, int]]

    @property
    def by_task(self) -> dict[str, float]:
        """Share of right images of each tag."""
        return {tag: correct / total for tag, (correct, total) in self.tasks.items()}

    @property
    def overall(self) -> float:
        """The score of GenEval: the plain mean of the tags that are present."""
        return sum(self.by_task.values()) / len(self.tasks)

    @property
    def text(self) -> str:
        """The text that GenEval's program prints."""
        tasks = [
            f"{tag:<16} = {correct / total:.2%} ({correct} / {total})"
            for tag, (correct, total) in self.tasks.items()
        ]
        return "\n".join(
            [
                *("Summary", "======="),
                f"Total images: {self.total_images}",
                f"Total prompts: {self.total_prompts}",
                f"% correct images: {self.correct_images:.2%}",
                f"% correct prompts: {self.correct_prompts:.2%}",
                *("", "Task breakdown", "=============="),
                *tasks,
                *("", f"Overall score (avg. over tasks): {self.overall:.5f}", ""),
            ]
        )


def summarize(lines: Iterable[ResultLine]) -> Summary:
    """Returns the figures of GenEval.

    Args:
        lines: the verdict on each image; at least one.

    Reference:
        parity family `geneval` (`summaries`).
    """
    tasks: dict[str, list[bool]] = defaultdict(list)
    prompts: dict[str, bool] = defaultdict(bool)
    for line in lines:
        tasks[line.tag].append(line.is_correct)
        prompts[line.metadata] |= line.is_correct
    marks = [mark for marks in tasks.values() for mark in marks]
    return Summary(
        total_images=len(marks),
        total_prompts=len(prompts),
        correct_images=sum(marks) / len(marks),
        correct_prompts=sum(prompts.values()) / len(prompts),
        tasks={tag: (sum(marks), len(marks)) for tag, marks in tasks.items()},
    )
