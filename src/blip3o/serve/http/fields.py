"""The rules that all requests share: unknown fields, nulls, and fields that may change nothing."""

import json
from collections.abc import Mapping
from typing import Annotated, Any

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

MOST_CHARACTERS = 100_000
UNSUPPORTED = "unsupported"
"""Type of the error of a field that would have an effect which this server does not have."""

Prompt = Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS)]


def _or_drawn(seed: Any) -> Any:  # noqa: ANN401  (whatever a client sends)
    return None if seed in (-1, "-1") else seed


Seed = Annotated[
    Annotated[int, Field(ge=0, lt=2**63)] | None,
    BeforeValidator(_or_drawn, json_schema_input_type=int | None),
]
"""As on the command line, -1 asks for any seed, which is what no seed does."""
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
    """A schema without unknown fields and without conversions; a null is as good as no field."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:  # noqa: ANN401  (whatever a client sends)
        """Clients dump their objects with a null for each field that they do not use."""
        if not isinstance(data, Mapping):
            return data
        return {
            name: value
            for name, value in data.items()
            if value is not None or cls._is_required(name)
        }

    @classmethod
    def _is_required(cls, name: str) -> bool:
        return name in cls.model_fields and cls.model_fields[name].is_required()


class Form(Strict):
    """The fields of a form: numbers come as text, and an empty field is as good as none."""

    model_config = ConfigDict(extra="forbid", strict=False)

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, data: Any) -> Any:  # noqa: ANN401  (whatever a client sends)
        if not isinstance(data, Mapping):
            return data
        return {
            name: value
            for name, value in data.items()
            if value != "" or name not in cls.model_fields or cls._is_required(name)
        }


class Only:
    """Accepts the values of a field that change nothing, and refuses all others.

    Args:
        values: what may be sent, besides null.
        because: one sentence that is said with the refusal.
    """

    def __init__(self, *values: Any, because: str = "") -> None:  # noqa: ANN401  (of JSON)
        self._values = values
        shown = " or ".join(json.dumps(value) for value in values)
        advice = f"leave it out or send {shown}" if values else "leave it out"
        why = f": {because}" if because else ""
        self._refusal = f"is not supported by this server{why}; {advice}"

    def __get_pydantic_core_schema__(
        self,
        source: Any,  # noqa: ANN401
        handler: GetCoreSchemaHandler,
    ) -> CoreSchema:
        del source, handler
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        del schema, handler
        return {"enum": [*self._values, None]}

    def _checked(self, value: Any) -> Any:  # noqa: ANN401
        for allowed in self._values:
            # In Python, but not in JSON, true equals 1.
            if value == allowed and isinstance(value, bool) == isinstance(allowed, bool):
                return value
        raise PydanticCustomError(UNSUPPORTED, "{words}", {"words": self._refusal})


Never = Annotated[Any, Only()]
"""A field that clients may only leave out."""


class Bookkeeping(Strict):
    """Fields about a client's accounts and caches; no answer depends on them."""

    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    prompt_cache_retention: Label | None = None
    prompt_cache_options: dict[str, Any] | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    service_tier: Annotated[Any, Only("auto", "default")] = None


class TextSettings(Strict):
    """How answers of text are written.

    They are greedy unless `temperature`, a `top_p` below 1 or `top_k` asks for sampling; then
    `temperature` is 1 where it is not said.
    """

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    guidance_scale: Guidance | None = None
    min_p: Annotated[Any, Only(0)] = None
    repetition_penalty: Annotated[Any, Only(1)] = None
    top_logprobs: Annotated[Any, Only(0)] = None
    parallel_tool_calls: bool | None = None
    moderation: Never = None
