"""Settings of the server; each field is also an option of `blip3o serve`."""

import dataclasses

from blip3o.core.errors import UsageError
from blip3o.core.options import flag, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Limits and settings of a server; each field is an option of `blip3o serve`.

    Raises:
        UsageError: for a number that is not positive, or an empty host or alias.
    """

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for all addresses")
    port: int = option(8000, "port to listen on; 0 for any free port")
    workers: int = option(1, "number of engines; on CUDA, one per device")
    max_batch: int = option(8, "largest number of images sampled together")
    max_wait_ms: float = option(20.0, "longest wait for images that can share a batch")
    unpadded_batches: bool = option(
        False, "use batches of any size: faster, but rounding depends on the rest of the batch"
    )
    compile: bool = option(
        False, "compile the sampler: faster after a slow first image of each batch size"
    )
    max_queue: int = option(64, "largest number of waiting requests; further ones get 429")
    max_queue_pixels: int = option(
        500_000_000,
        "pixels of all input images being decoded or waiting, 4 bytes each; beyond it, 429",
    )
    max_chats: int = option(8, "largest number of answers written at the same time")
    max_chat_tokens: int = option(
        65_536, "total tokens of the answers being written, prompts included"
    )
    timeout_s: float = option(300.0, "longest time for a request")
    body_timeout_s: float = option(30.0, "longest time to receive the body of a request")
    header_timeout_s: float = option(10.0, "longest time to receive the header of a request")
    read_timeout_s: float = option(60.0, "longest time a client may take without reading any data")
    max_connections: int = option(
        1000, "largest number of connections; lower if the system limits open files"
    )
    decode_threads: int = option(2, "number of threads that decode input images")
    decode_timeout_s: float = option(30.0, "longest wait for an image to be decoded")
    drain_timeout_s: float = option(60.0, "longest time to finish accepted requests after SIGTERM")
    max_prompt_tokens: int = option(4096, "longest prompt; the model may allow less")
    max_answer_tokens: int = option(1024, "longest answer; the model may allow less")
    max_images: int = option(4, "largest number of input images of a request")
    max_image_bytes: int = option(20_000_000, "largest size of an image file")
    max_image_pixels: int = option(64_000_000, "largest number of pixels of an image")
    max_body_bytes: int = option(32_000_000, "largest size of a request")
    max_bodies_bytes: int = option(
        1_000_000_000, "total size of all requests held in memory; beyond it, 429"
    )
    max_upload_bytes: int = option(
        1_000_000_000, "total size of the web page's files; the oldest are deleted first"
    )
    preview_decoder_steps: int = option(4, "most image decoder steps for a preview")
    max_n: int = option(10, "largest number of images or answers per request")
    max_steps: int = option(100, "largest number of sampling steps")
    image_host: tuple[str, ...] = option(
        (), "host that image URLs may point to; repeatable, none by default"
    )
    allowed_host: tuple[str, ...] = option(
        (),
        "host name by which clients may call this server; '*.NAME' for all its subdomains, '*' for "
        "any; repeatable; loopback names are always allowed",
    )
    api_key: tuple[str, ...] = option(
        (), "key that clients must send; repeatable, also BLIP3O_API_KEYS (comma-separated)"
    )
    cors_origin: tuple[str, ...] = option((), "web origin that may call the API; repeatable")
    model_alias: tuple[str, ...] = option((), "another model name that clients may use; repeatable")
    no_page: bool = option(False, "serve only the API, without the web page at /")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            least = 0 if field.name in ("port", "max_wait_ms") else 1e-9
            if not least <= value < float("inf"):
                raise UsageError(f"{flag(field.name)} must be positive, got {value}")
        if not self.host.strip():
            raise UsageError("--host is empty; give an address, or 0.0.0.0 for all addresses")
        if not all(self.model_alias):
            raise UsageError("--model-alias is empty; give a name or leave it out")
        if self.port > 65535:
            raise UsageError(f"--port must be at most 65535, got {self.port}")
