"""Settings of the reward server."""

import dataclasses
import math

from blip3o.core.errors import UsageError
from blip3o.core.options import flag, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardServerConfig:
    """Address and limits of a reward server; each field is an option of its command.

    Raises:
        UsageError: for a number out of range, or an empty host.
    """

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for all addresses")
    port: int = option(8100, "port to listen on; 0 for any free port")
    max_wait_ms: float = option(20.0, "longest wait for images that can share a batch")
    max_queue: int = option(2048, "largest number of waiting images; beyond it, 429")
    max_queue_bytes: int = option(
        4_000_000_000, "total size of the files of waiting images; beyond it, 429"
    )
    max_images: int = option(256, "largest number of images of a request")
    max_image_bytes: int = option(20_000_000, "largest size of an image file")
    max_image_pixels: int = option(20_000_000, "largest number of pixels of an image")
    max_body_bytes: int = option(256_000_000, "largest size of a request")
    max_bodies_bytes: int = option(
        2_000_000_000, "total size of all requests held in memory; beyond it, 429"
    )
    body_timeout_s: float = option(60.0, "longest time to receive the body of a request")
    timeout_s: float = option(600.0, "longest time for a request; then 503, to be sent again")
    judge_timeout_s: float = option(
        300.0, "longest time for one judgement; then the scorer is started anew"
    )
    load_timeout_s: float = option(1800.0, "longest time to load the scorer")
    drain_timeout_s: float = option(60.0, "longest time to finish accepted requests after SIGTERM")
    max_deaths: int = option(
        5, "deaths of the scorer with an image in work, after which the image is given up"
    )
    max_starts: int = option(5, "failed starts of the scorer in a row, after which the server ends")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and field.name not in ("port", "max_wait_ms"):
                _check(field.name, value, 1 if isinstance(field.default, int) else 1e-3)
        _check("port", self.port, 0, 65535)
        _check("max_wait_ms", self.max_wait_ms, 0)
        if not self.host.strip():
            raise UsageError("--host is empty; give an address, or 0.0.0.0 for all addresses")
        if self.max_images > self.max_queue:
            raise UsageError(
                f"--max-images {self.max_images} is more than --max-queue {self.max_queue}: such "
                "a request would never be accepted; change one of them"
            )


def _check(name: str, value: float, least: float, most: float = math.inf) -> None:
    if not least <= value <= most or value == math.inf:
        end = "" if most == math.inf else f" and at most {most:g}"
        raise UsageError(f"{flag(name)} must be at least {least:g}{end}, got {value}")
