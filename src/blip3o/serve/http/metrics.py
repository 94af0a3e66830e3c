"""What Prometheus reads at `/metrics`."""

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
        self._sizes = self._histogram("batch_size", "Images of a batch, padding not", _SIZES)
        self._works = self._histogram("batch_seconds", "Time to make a batch", _SECONDS)
        self._images = Counter("blip3o_images", "Images made", registry=self._registry)
        self._tokens = Counter("blip3o_answer_tokens", "Tokens written", registry=self._registry)
        self.seconds_per_image = 1.0

    def watch(self, name: str, what: str, read: Callable[[], float]) -> None:
        """Adds a number that is read whenever somebody asks."""
        Gauge(f"blip3o_{name}", what, registry=self._registry).set_function(read)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, num_rows: int, seconds: float) -> None:
        """A batch of so many images is done."""
        self._sizes.observe(num_rows)
        self._works.observe(seconds)
        self._images.inc(num_rows)
        self.seconds_per_image += 0.2 * (seconds / num_rows - self.seconds_per_image)

    def waited(self, seconds: float) -> None:
        """A job waited so long before its work began."""
        self._waits.observe(seconds)

    def answer_tokens(self, count: int) -> None:
        """So many tokens of an answer were written."""
        self._tokens.inc(count)

    def text(self) -> bytes:
        """Returns all of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(
        self, name: str, what: str, buckets: tuple[float, ...], labels: list[str] | None = None
    ) -> Histogram:
        return Histogram(
            f"blip3o_{name}", what, labels or [], buckets=buckets, registry=self._registry
        )
