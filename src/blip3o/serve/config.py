"""Every number and switch of the server; the command line's options are made of these fields."""

import argparse
import dataclasses
from typing import Any

from blip3o.core.errors import UsageError


def _option(default: Any, text: str) -> Any:  # noqa: ANN401  (a field of any type)
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What a server allows and how it works; each field is an option of `blip3o serve`.

    Raises:
        UsageError: for a number that is not positive, or an empty host or alias.
    """

    host: str = _option("127.0.0.1", "address to listen on; 0.0.0.0 for all of this machine's")
    port: int = _option(8000, "port to listen on; 0 for any free one")
    workers: int = _option(1, "engines; on CUDA one for each device")
    max_batch: int = _option(8, "images sampled at once")
    max_wait_ms: float = _option(20.0, "longest wait for images that can share a batch")
    unpadded_batches: bool = _option(
        False, "batches of any size: faster, but rounding depends on what shares a batch"
    )
    compile: bool = _option(
        False, "compile the sampler: faster after a slow first image of each batch size"
    )
    max_queue: int = _option(64, "requests that may wait; more are answered 429")
    max_queue_pixels: int = _option(
        500_000_000,
        "pixels of the images that are decoded or wait, 4 bytes each; more are answered 429",
    )
    max_chats: int = _option(8, "answers written at once")
    max_chat_tokens: int = _option(
        65_536, "tokens that answers written at once may come to, prompts included"
    )
    timeout_s: float = _option(300.0, "longest time for a request")
    body_timeout_s: float = _option(30.0, "longest time for a request's body to arrive")
    header_timeout_s: float = _option(10.0, "longest time for a request's header to arrive")
    read_timeout_s: float = _option(60.0, "longest time in which a client reads nothing")
    max_connections: int = _option(
        1000, "connections at once; fewer if the system allows fewer open files"
    )
    decode_threads: int = _option(2, "threads that decode the images of requests")
    decode_timeout_s: float = _option(30.0, "longest wait for an image to be decoded")
    drain_timeout_s: float = _option(60.0, "longest time to finish accepted work after SIGTERM")
    max_prompt_tokens: int = _option(4096, "longest prompt; a model may take less")
    max_answer_tokens: int = _option(1024, "longest answer; a model may write less")
    max_images: int = _option(4, "images that come with a request")
    max_image_bytes: int = _option(20_000_000, "largest image file")
    max_image_pixels: int = _option(64_000_000, "most pixels of an image")
    max_body_bytes: int = _option(32_000_000, "largest request")
    max_bodies_bytes: int = _option(
        1_000_000_000, "bytes of all requests that are held; more are answered 429"
    )
    max_upload_bytes: int = _option(
        1_000_000_000, "bytes of the page's files; the oldest make room for new ones"
    )
    preview_decoder_steps: int = _option(4, "steps of the image decoder for a preview, at most")
    max_n: int = _option(10, "images made by a request")
    max_steps: int = _option(100, "sampling steps")
    image_host: tuple[str, ...] = _option(
        (), "a host that image URLs may point to; repeatable, none by default"
    )
    allowed_host: tuple[str, ...] = _option(
        (),
        "a name by which clients may call this server, '*.NAME' for all below it, '*' for any; "
        "repeatable; loopback names always",
    )
    api_key: tuple[str, ...] = _option(
        (), "a key that clients must send; repeatable, also BLIP3O_API_KEYS (with commas)"
    )
    cors_origin: tuple[str, ...] = _option((), "a web origin that may call; repeatable")
    model_alias: tuple[str, ...] = _option(
        (), "another name of the model that clients may use; repeatable"
    )
    no_page: bool = _option(False, "serve no web page at /, the API only")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            least = 0 if field.name in ("port", "max_wait_ms") else 1e-9
            if not least <= value < float("inf"):
                raise UsageError(f"{flag(field.name)} must be positive, got {value}")
        if not self.host.strip():
            raise UsageError("--host is empty, which would mean every address of this machine")
        if not all(self.model_alias):
            raise UsageError("--model-alias is empty")
        if self.port > 65535:
            raise UsageError(f"--port must be at most 65535, got {self.port}")


def flag(name: str) -> str:
    """Returns the command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def add_options(command: argparse.ArgumentParser) -> None:
    """Adds an option for every field of `ServeConfig`."""
    for field in dataclasses.fields(ServeConfig):
        text = field.metadata["help"]
        if isinstance(field.default, bool):
            command.add_argument(flag(field.name), action="store_true", help=text)
        elif isinstance(field.default, tuple):
            command.add_argument(flag(field.name), action="append", default=[], help=text)
        else:
            shown = f"{text} ({field.default})"
            kind = type(field.default)
            command.add_argument(flag(field.name), type=kind, default=field.default, help=shown)


def from_options(options: argparse.Namespace) -> ServeConfig:
    """Returns the config that the parsed options say.

    Raises:
        UsageError: for a number out of range.
    """
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(ServeConfig)}
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return ServeConfig(**settings)
