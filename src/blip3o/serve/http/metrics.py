"""Metrics for Prometheus, served at `/metrics`."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class Metrics:
    """Counters of one server; safe to call from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "blip3o_requests", "Answered requests", ["route", "status"], registry=self._registry
        )
        self._seconds = self._histogram("request_seconds", "Time to answer", _SECONDS, ["route"])
        self._waits = self._histogram("queue_seconds", "Time in the queue", _SECONDS)
        self._sizes = self._histogram("batch_size", "Images per batch, without padding", _SIZES)
        self._works = self._histogram("batch_seconds", "Time to make a batch", _SECONDS)
        self._images = Counter("blip3o_images", "Images made", registry=self._registry)
        self._tokens = Counter("blip3o_answer_tokens", "Tokens written", registry=self._registry)
        self.seconds_per_image = 1.0

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge whose value `read` returns at every scrape."""
        Gauge(f"blip3o_{name}", help_text, registry=self._registry).set_function(read)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, num_rows: int, seconds: float) -> None:
        """Counts a finished batch of images."""
        self._sizes.observe(num_rows)
        self._works.observe(seconds)
        self._images.inc(num_rows)
        self.seconds_per_image += 0.2 * (seconds / num_rows - self.seconds_per_image)

    def waited(self, seconds: float) -> None:
        """Records how long a job waited before its work began."""
        self._waits.observe(seconds)

    def answer_tokens(self, count: int) -> None:
        """Counts the tokens of an answer."""
        self._tokens.inc(count)

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: list[str] | None = None
    ) -> Histogram:
        return Histogram(
            f"blip3o_{name}", text, labels or [], buckets=buckets, registry=self._registry
        )
