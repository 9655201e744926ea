"""Tracking: what a fit tells TensorBoard, Weights & Biases, MLflow or a tracker of your own while it runs."""

from __future__ import annotations

import itertools
import logging
import os
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polymodal.errors import SpecError, suggest
from polymodal.spec import Spec

if TYPE_CHECKING:
    from polymodal.objectives.monitor import Epoch


class Tracker(ABC):
    """Somewhere that a fit is followed."""

    @abstractmethod
    def start(self, spec: Spec, facts: Mapping[str, Any]) -> None:
        """Begin a run.

        Args:
            spec: as it was asked for, before fitting.
            facts: ``rows`` by side and ``device``.
        """

    @abstractmethod
    def log(self, stage: str, epoch: Epoch) -> None:
        """Take an epoch that is over; ``stage`` is ``train``, or ``refit`` for the training on all rows."""

    @abstractmethod
    def finish(self, report: Mapping[str, Any] | None) -> None:
        """End the run with the report of the fit; None if the fit failed."""


Track = str | Tracker | Sequence[str | Tracker]


def scalars(stage: str, epoch: Epoch) -> dict[str, float]:
    """Every number of an epoch by a name of two levels, as ``train/loss`` and ``valid terms/label from image``."""
    found = {f"{stage}/loss": epoch.train_loss, "valid/loss": epoch.valid_loss, "valid/score": epoch.score}
    found |= {f"{stage} terms/{label}": value for label, value in epoch.terms.items()}
    found |= {f"valid terms/{label}": value for label, value in epoch.valid_terms.items()}
    found |= {f"{stage} gradients/{name}": value for name, value in epoch.gradients.items()}
    return {name: value for name, value in found.items() if value is not None}


def final(report: Mapping[str, Any]) -> dict[str, float]:
    """Every score of a report with all inputs, without each and with each alone, as ``valid scores/label accuracy``."""
    found = {}
    for side in ("valid", "test"):
        for n, task in report.get(side, {}).get("tasks", {}).items():
            variants = {"": task["scores"]}
            variants |= {f" without {name}": scores for name, scores in task["without"].items()}
            variants |= {f" only {name}": scores for name, scores in task["alone"].items()}
            for label, scores in variants.items():
                found |= {f"{side} scores/{n} {metric}{label}": value for metric, value in scores.items()}
    return found


class Recorder(Tracker):
    """A tracker that takes numbers by name, told where to put them by what stands after the colon."""

    @abstractmethod
    def __init__(self, place: str = "") -> None: ...

    def log(self, stage: str, epoch: Epoch) -> None:
        """Write the epoch's numbers."""
        self._write(scalars(stage, epoch), epoch.number)

    def finish(self, report: Mapping[str, Any] | None) -> None:
        """Write the scores, and close the run."""
        if report is not None:
            self._write(final(report), None)
        self._close(report is None)

    @abstractmethod
    def _write(self, values: Mapping[str, float], epoch: int | None) -> None: ...

    @abstractmethod
    def _close(self, failed: bool) -> None: ...


class TensorBoard(Recorder):
    """Event files, in a folder of its own for each run: ``runs/1``, ``runs/2``, ...

    Args:
        place: folder of the runs; ``runs`` if empty.
    """

    def __init__(self, place: str = "") -> None:
        try:  # torch's own writer costs two seconds to import
            from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise _missing("tensorboard") from None
        self._proto: tuple[Any, Any, Any] = (event_pb2, summary_pb2, tensor_pb2)
        self._open, self.folder = RecordWriter, Path(place or "runs")

    def start(self, spec: Spec, facts: Mapping[str, Any]) -> None:
        """Make the run's folder and write the spec and the facts into it."""
        places = (self.folder / str(number) for number in itertools.count(1))
        self.folder = next(place for place in places if not place.exists())
        self.folder.mkdir(parents=True)
        file = self.folder / f"events.out.tfevents.{int(time.time())}.polymodal.{os.getpid()}"
        self._file = self._open(file.open("wb"))
        self._put(file_version="brain.Event:2")
        kind = self._proto[1].SummaryMetadata(plugin_data={"plugin_name": "text"})
        for name, text in {"spec": spec.to_yaml(), "facts": "\n".join(f"{k}: {v}" for k, v in facts.items())}.items():
            block = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown for "as it stands"
            content = self._proto[2].TensorProto(dtype="DT_STRING", string_val=[block.encode()])
            self._put(summary={"value": [{"tag": f"{name}/text_summary", "metadata": kind, "tensor": content}]})

    def _put(self, **content: Any) -> None:
        self._file.write(self._proto[0].Event(wall_time=time.time(), **content).SerializeToString())
        self._file.flush()

    def _write(self, values: Mapping[str, float], epoch: int | None) -> None:
        self._put(step=epoch or 0, summary={"value": [{"tag": k, "simple_value": v} for k, v in values.items()]})

    def _close(self, failed: bool) -> None:
        self._file.close()


class WeightsAndBiases(Recorder):
    """A run of Weights & Biases; offline, in the folder ``wandb``, unless WANDB_MODE says otherwise.

    Args:
        place: the project; ``polymodal`` if empty.
    """

    def __init__(self, place: str = "") -> None:
        self.mode: Any = os.environ.get("WANDB_MODE", "offline")
        if self.mode != "online":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it may tell its makers of its failures
        try:
            import wandb
        except ImportError:
            raise _missing("wandb") from None
        self._wandb, self.project = wandb, place or "polymodal"

    def start(self, spec: Spec, facts: Mapping[str, Any]) -> None:
        """Begin a run that holds the spec and the facts as its configuration."""
        settings = self._wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True, x_disable_meta=True
        )  # the numbers, and nothing else of this machine
        self._run = self._wandb.init(
            project=self.project, mode=self.mode, config={"spec": spec.to_yaml(), **facts}, settings=settings,
            reinit="create_new",
        )  # fmt: skip
        self._run.define_metric("*", step_metric="epoch")

    def _write(self, values: Mapping[str, float], epoch: int | None) -> None:
        if epoch is None:
            self._run.summary.update(values)
        else:
            self._run.log({**values, "epoch": epoch})

    def _close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow(Recorder):
    """A run of MLflow; in the file ``mlflow.db``, where ``mlflow ui`` looks, unless MLFLOW_TRACKING_URI says otherwise.

    Args:
        place: the experiment; ``polymodal`` if empty.
    """

    def __init__(self, place: str = "") -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # else the import alone asks the network
        self.uri = os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
        try:
            with _quiet():
                from mlflow import MlflowClient
                from mlflow.entities import Metric
        except ImportError:
            raise _missing("mlflow") from None
        self._connect, self._metric, self.experiment = MlflowClient, Metric, place or "polymodal"

    def start(self, spec: Spec, facts: Mapping[str, Any]) -> None:
        """Begin a run in the experiment, which is made if there is none."""
        with _quiet():
            self._client = self._connect(self.uri)
            found = self._client.get_experiment_by_name(self.experiment)
            place = self._client.create_experiment(self.experiment) if found is None else found.experiment_id
            self._run = self._client.create_run(place).info.run_id
            self._client.log_text(self._run, spec.to_yaml(), "spec.yaml")
            for name, value in facts.items():
                self._client.log_param(self._run, name, value)

    def _write(self, values: Mapping[str, float], epoch: int | None) -> None:
        now = int(1000 * time.time())
        names = [re.sub(r"[^\w./ -]", "_", name) for name in values]  # it takes no others
        found = [self._metric(name, x, now, epoch or 0) for name, x in zip(names, values.values(), strict=True)]
        with _quiet():
            self._client.log_batch(self._run, found)

    def _close(self, failed: bool) -> None:
        with _quiet():
            self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's notes on its own database, and what it still uses that SQLAlchemy deprecates."""
    logger = logging.getLogger("mlflow.store.db.utils")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mlflow\.")
            yield
    finally:
        logger.setLevel(level)


TRACKERS: dict[str, type[Recorder]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


class Tracking:
    """Several trackers as one, which cannot stop a fit that has begun: one that fails is told of, once, and left out.

    Args:
        track: names, each perhaps with a place after a colon (``tensorboard:folder``, ``wandb:project``,
            ``mlflow:experiment``), or trackers.

    Raises:
        SpecError: there is no such tracker, or its package is not installed.
    """

    def __init__(self, track: Track = ()) -> None:
        self.trackers = [_parse(item) for item in ([track] if isinstance(track, str | Tracker) else track)]

    @contextmanager
    def run(self, spec: Spec, facts: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """One run of each; the function it gives ends them with a report. Without it, the fit has failed.

        Raises:
            SpecError: one cannot begin.
        """
        wanted, self.trackers = self.trackers, []
        try:
            for tracker in wanted:
                self._start(tracker, spec, facts)
            yield self._finish
        finally:
            self._finish(None)

    def log(self, stage: str, epoch: Epoch) -> None:
        """Tell each of an epoch."""
        self._each(lambda tracker: tracker.log(stage, epoch))

    def _start(self, tracker: Tracker, spec: Spec, facts: Mapping[str, Any]) -> None:
        try:
            tracker.start(spec, facts)
        except Exception as error:
            name = type(tracker).__name__
            raise SpecError(f"track: {name} must be able to begin a run, got: {error}. Leave it out.") from error
        self.trackers.append(tracker)

    def _finish(self, report: Mapping[str, Any] | None) -> None:
        self._each(lambda tracker: tracker.finish(report))
        self.trackers = []

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self.trackers):
            try:
                tell(tracker)
            except Exception as error:  # noqa: BLE001  (of any package, and never worth a fit)
                self.trackers.remove(tracker)
                with suppress(Exception):
                    tracker.finish(None)  # it may hold a file
                name, reason = type(tracker).__name__, f"{type(error).__name__}: {error}"
                warnings.warn(f"track: {name} failed, and the fit goes on without it: {reason}", stacklevel=2)


def _parse(item: str | Tracker) -> Tracker:
    if isinstance(item, Tracker):
        return item
    name, colon, place = str(item).partition(":")
    if name not in TRACKERS:
        raise SpecError(f"track must be one of {list(TRACKERS)}, got {item!r}.{suggest(name, TRACKERS)}")
    if colon and not place:
        raise SpecError(f"track must name a place after the colon, got {item!r}. Or leave the colon out.")
    return TRACKERS[name](place)


def _missing(extra: str) -> SpecError:
    return SpecError(f"track: {extra} must be installed, got no such package. Run: pip install 'polymodal[{extra}]'")
