"""A judge that plays recorded answers, without a server, a key or money."""

import dataclasses
from pathlib import Path

from blip3o.core.config import LocalPath
from blip3o.remote.cache import RecordedModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordedJudge:
    """Recorded answers; a request without a record counts as a fault of the transport.

    Args:
        path: JSON lines from `blip3o.remote.cache.export_answers`.
        model: name of the recorded judge, if the file holds answers of several.
        extra: the field `extra` of the judge that was recorded.
    """

    kind: str = "recorded"
    path: LocalPath
    model: str | None = None
    extra: dict[str, object] = dataclasses.field(default_factory=dict)

    def build(self) -> RecordedModel:
        """Returns the judge, with the name of the recorded one.

        Raises:
            UsageError: if the file cannot be read, or does not hold answers of the model.
        """
        return RecordedModel(Path(self.path), self.model, extra=self.extra)
