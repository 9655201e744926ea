"""Metrics: what a server counts, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.35, 0.6, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MEDIA_TYPE = CONTENT_TYPE_LATEST
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable that names the folder in which several processes keep their counts together."""


class Metrics:
    """Counts of one server, in a registry of its own.

    With PROMETHEUS_MULTIPROC_DIR set before this is imported, any process of a server shows the sum over all of them.

    Attributes:
        registry: that holds them.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._waiting: Callable[[], Mapping[str, int]] = dict
        self._shared = FOLDER in os.environ
        self._children: dict[tuple[Any, ...], Any] = {}
        requests = ["route", "status"]
        self.seconds = Histogram(
            "polymodal_request_duration_seconds", "From a request's head to its answer's end.", requests,
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self.rows = Counter("polymodal_rows", "Rows answered.", ["model"], registry=registry)
        self.waiting_rows = Gauge(
            "polymodal_waiting_rows", "Rows that wait for the model.", ["model"], registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.batch_rows = Histogram(
            "polymodal_batch_rows", "Rows that went through the model together.", ["model"], registry=registry,
            buckets=ROWS,
        )  # fmt: skip
        self.batch_seconds = Histogram(
            "polymodal_batch_duration_seconds", "Time of the model for one batch.", ["model"], registry=registry,
            buckets=SECONDS,
        )  # fmt: skip
        self.inputs = Counter(
            "polymodal_inputs", "Rows by whether an input was there.", ["model", "input", "state"], registry=registry
        )
        self.rejected = Counter(
            "polymodal_rejected_requests", "Requests without an answer, by why.", ["reason"], registry=registry
        )
        self.swaps = Counter(
            "polymodal_swaps", "New versions of a bundle, by whether they took over.", ["model", "result"],
            registry=registry,
        )  # fmt: skip
        self.dropped = Counter("polymodal_dropped_log_lines", "Log lines that could not be written.", registry=registry)
        self.version_info = Gauge(
            "polymodal_model_info", "1 for the version of a bundle that answers.", ["model", "version"],
            registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip
        if not self._shared:
            ProcessCollector(registry=registry)

    def request(self, route: str, status: int, seconds: float, reason: str | None = None) -> None:
        """Count a request that is over.

        Args:
            route: pattern of its path, or "other"; never the path itself.
            status: of its answer.
            seconds: that it took.
            reason: type of the fault, if it was refused.
        """
        self._child(self.seconds, route, str(status)).observe(seconds)
        if reason is not None:
            self._child(self.rejected, reason).inc()

    def answered(self, model: str, rows: int) -> None:
        """Count rows that were answered."""
        self._child(self.rows, model).inc(rows)
        if self._shared:
            self._look()

    def batch(self, model: str, size: int, seconds: float) -> None:
        """Count a batch that went through a model: rows, and how long it took."""
        self._child(self.batch_rows, model).observe(size)
        self._child(self.batch_seconds, model).observe(seconds)

    def presence(self, model: str, name: str, present: bool) -> None:
        """Count whether an input had something usable in a row."""
        self._child(self.inputs, model, name, "present" if present else "absent").inc()

    def swap(self, model: str, version: str, ok: bool) -> None:
        """Count that a version took a bundle's place, or could not."""
        self._child(self.swaps, model, "done" if ok else "failed").inc()
        if ok:
            self.version(model, version)

    def version(self, model: str, version: str) -> None:
        """Tell which version of a bundle answers; the one before does no more."""
        before = self._children.get(("version", model))
        if before == version:
            return
        if before is not None:
            if self._shared:
                self.version_info.labels(model, before).set(0)  # labels cannot be removed from a shared file
            else:
                self.version_info.remove(model, before)
        self._children["version", model] = version
        self.version_info.labels(model, version).set(1)

    def watch(self, waiting: Callable[[], Mapping[str, int]]) -> None:
        """Name the function that tells how many rows wait for each model."""
        self._waiting = waiting

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        self._look()
        if not self._shared:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)

    def _look(self) -> None:
        for model, rows in self._waiting().items():
            self._child(self.waiting_rows, model).set(rows)

    def _child(self, metric: Any, *labels: str) -> Any:
        """A metric with its labels, which prometheus_client looks up more slowly."""
        key = (metric, *labels)
        found = self._children.get(key)
        if found is None:
            found = self._children[key] = metric.labels(*labels)
        return found
