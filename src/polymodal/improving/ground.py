"""What an improvement is made from and judged on: the rows as they were divided, and the model before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymodal.bundle import Bundle
from polymodal.data.gather import Progress
from polymodal.data.loader import Prepared
from polymodal.diagnose.run import diagnose
from polymodal.errors import DataError
from polymodal.learn import Learner
from polymodal.model import Model
from polymodal.sides import Sides, Tables


class Ground:
    """A bundle's rows, divided as they were when it was fitted.

    Attributes:
        bundle: to improve.
        tables: that the rows are of.
        parts: ``train``, ``valid``, and perhaps ``test``.
        refitted: whether the bundle's last training had the validation rows too.
        seen: whether the bundle may know the validation rows, so that it cannot be judged on them.
        progress: told how far it is.
    """

    def __init__(self, bundle: Bundle, tables: Tables, strict: bool, progress: Progress) -> None:
        self.bundle, self.tables, self.progress = bundle, tables, progress
        rows = tables.divide(bundle.spec)
        self.parts = tables.prepare(bundle.spec, bundle.embedder, rows, strict=strict, progress=progress)
        if "valid" not in self.parts:
            raise DataError(
                f"{tables.train.source} must have labelled validation rows to prove an improvement on, got none. "
                "Give a table of them with valid=, or fit with split.valid above 0."
            )
        fit = bundle.report.get("fit", {})
        self.refitted = bool(fit.get("refitted", True))
        same = Sides(bundle.spec, bundle.embedder, self.parts).digest == fit.get("digest")
        self.seen = self.refitted or not same
        self._before: Model | None = None

    @property
    def train(self) -> Prepared:
        """Rows to learn from."""
        return self.parts["train"]

    @property
    def valid(self) -> Prepared:
        """Rows to judge on."""
        return self.parts["valid"]

    def groups(self) -> list[Any] | None:
        """What each row of the table belongs to, where the rows were split by that."""
        split = self.bundle.spec.split
        if split.by != "group" or split.column is None:
            return None
        return list(self.tables.train.column(split.column))

    def before(self) -> Model:
        """A model that does not know the validation rows: the bundle's own, or its recipe on the training rows."""
        if self._before is None:
            self._before = self.learned(self.train, self.valid) if self.seen else self.bundle.model
        return self._before

    def learned(self, train: Prepared, valid: Prepared) -> Model:
        """The bundle's recipe, trained on some rows and choosing on others."""
        training = self.bundle.spec.training.model_copy(update={"refit": 0})
        spec = self.bundle.spec.model_copy(update={"training": training})
        return Learner(spec, self.bundle.device, None, "", self.progress).learn(train, valid).model

    def diagnosis(self) -> Mapping[str, Any]:
        """What the model before makes of each input, on the validation rows."""
        table = self.tables.others.get("valid", self.tables.train)
        found = diagnose(
            self.before(), self.valid, table, self.bundle.embedder, self.bundle.device, curve_rows=0,
            fit_report=self.bundle.report.get("fit", {}), seed=self.bundle.spec.seed, progress=self.progress,
        )  # fmt: skip
        return found.content
