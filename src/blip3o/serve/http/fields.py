"""Rules that all request schemas share: unknown fields, nulls and unsupported fields."""

import json
from collections.abc import Mapping
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

JsonObject = dict[str, object]
MOST_CHARACTERS = 100_000
UNSUPPORTED = "unsupported"
"""pydantic error type of a field that asks for a feature which this server lacks."""

Prompt = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]


def _or_random(seed: object) -> object:
    return None if seed in (-1, "-1") else seed


Seed = Annotated[
    Annotated[int, Field(ge=0, lt=2**63)] | None,
    BeforeValidator(_or_random, json_schema_input_type=int | None),
]
"""A seed; -1 or a missing field means a random one, as on the command line."""
Place = Annotated[int, Field(ge=0, lt=2**63)]
"""A number in a list, from 0."""
Count = Annotated[int, Field(ge=1, le=1000)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Guidance = Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)]
TokenLimit = Annotated[int, Field(ge=1, le=1_000_000)]
PartialImages = Annotated[int, Field(ge=0, le=3)]
Label = Annotated[str, Field(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class Strict(BaseModel):
    """A schema without unknown fields or conversions; a null counts as a missing field."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: object) -> object:
        """Drops nulls: many clients send one for each unused field."""
        if not isinstance(data, Mapping):
            return data
        return {name: value for name, value in data.items() if not cls._is_unused(name, value)}

    @classmethod
    def _is_unused(cls, name: str, value: object) -> bool:
        is_required = name in cls.model_fields and cls.model_fields[name].is_required()
        return value is None and not is_required


class Form(Strict):
    """The fields of a form: numbers arrive as text, and an empty field counts as missing."""

    model_config = ConfigDict(extra="forbid", strict=False)

    @classmethod
    def _is_unused(cls, name: str, value: object) -> bool:
        is_blank = value == "" and name in cls.model_fields
        return super()._is_unused(name, None if is_blank else value)


class Only:
    """Accepts null and the given values, which have no effect, and refuses all others.

    `because` is the reason for the refusal, one sentence.
    """

    def __init__(self, *values: object, because: str = "") -> None:
        self._values = values
        shown = " or ".join(json.dumps(value) for value in values)
        advice = f"leave it out or send {shown}" if values else "leave it out"
        why = f": {because}" if because else ""
        self._refusal = f"is not supported by this server{why}; {advice}"

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        del source, handler
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonObject:
        del schema, handler
        return {"enum": [*self._values, None]}

    def _checked(self, value: object) -> object:
        for allowed in self._values:
            # In Python, but not in JSON, true equals 1.
            if value == allowed and isinstance(value, bool) == isinstance(allowed, bool):
                return value
        raise PydanticCustomError(UNSUPPORTED, "{words}", {"words": self._refusal})


Never = Annotated[object, Only()]
"""A field that clients must leave out."""


class Bookkeeping(Strict):
    """Fields for accounts and caches of a client; they do not affect the answer."""

    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    prompt_cache_options: JsonObject | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: Annotated[object, Only("auto", "default")] = None


class TextSettings(Strict):
    """Settings of written answers.

    Answers are greedy unless `temperature`, a `top_p` below 1 or `top_k` asks for sampling; then
    `temperature` is 1 by default.
    """

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    min_p: Annotated[object, Only(0)] = None
    repetition_penalty: Annotated[object, Only(1)] = None
    top_logprobs: Annotated[object, Only(0)] = None
    parallel_tool_calls: bool | None = None
    moderation: Never = None
