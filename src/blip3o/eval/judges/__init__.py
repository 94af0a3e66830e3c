"""Judges that answer questions about images. Each has one file and one line in a table."""

from typing import Protocol

from blip3o.core.registry import Registry
from blip3o.remote.chat import ChatModel

JUDGES: Registry[type["JudgeConfig"]] = Registry(
    "judge",
    {
        "openai": ".openai:OpenAIJudge",
        "recorded": ".recorded:RecordedJudge",
        "local": ".local:LocalJudge",
    },
    package=__name__,
)


class JudgeConfig(Protocol):
    """Settings of a judge, a frozen dataclass."""

    @property
    def kind(self) -> str:
        """Name of the judge in `JUDGES`."""
        ...

    def build(self) -> ChatModel:
        """Returns the judge.

        Raises:
            UsageError: if its address, key or files are missing.
        """
        ...
