"""Metrics of the reward server for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_PREFIX = "blip3o_rewards"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class RewardMetrics:
    """Counters of one server; safe to call from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Answered requests", ["status"])
        self._images = self._counter("images", "Judged images", ["outcome"])
        self._deaths = self._counter("scorer_deaths", "Deaths of the scorer's process")
        self._seconds = self._histogram("request_seconds", "Time to answer", _SECONDS)
        self._waits = self._histogram("queue_seconds", "Time of an image in the queue", _SECONDS)
        self._sizes = self._histogram("batch_size", "Images per batch", _SIZES)
        self._works = self._histogram("batch_seconds", "Time to judge a batch", _SECONDS)
        self.seconds_per_image = 0.1

    def watch(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Adds a gauge whose value `read` returns at every scrape."""
        Gauge(f"{_PREFIX}_{name}", help_text, registry=self._registry).set_function(read)

    def answered(self, status: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(str(status)).inc()
        self._seconds.observe(seconds)

    def judged(self, outcome: str) -> None:
        """Counts an image that has its reward."""
        self._images.labels(outcome).inc()

    def waited(self, seconds: float) -> None:
        """Records how long an image waited before its work began."""
        self._waits.observe(seconds)

    def batch(self, num_images: int, seconds: float) -> None:
        """Counts a batch of images."""
        self._sizes.observe(num_images)
        self._works.observe(seconds)
        self.seconds_per_image += 0.2 * (seconds / num_images - self.seconds_per_image)

    def died(self) -> None:
        """Counts a death of the scorer's process."""
        self._deaths.inc()

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"{_PREFIX}_{name}", text, labels or [], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}", text, buckets=buckets, registry=self._registry)
