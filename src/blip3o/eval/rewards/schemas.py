"""Rules that all schemas of requests share."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A schema that refuses unknown fields and converts no types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
