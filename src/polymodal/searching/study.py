"""Study: the trials of a search, proposed and pruned by Optuna, kept in a file as each is over."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from polymodal.errors import PolymodalError, SpecError
from polymodal.searching.score import Score
from polymodal.searching.space import Knob

NAME = "polymodal"
RANDOM = 10
"""First trials, drawn at random, before the others learn from them."""

BEFORE_PRUNING = 5
"""Trials that must be complete before others are compared with them."""

JUDGED = 10
"""Least number of complete trials that say something of how much each setting matters."""

Run = Callable[[Mapping[str, Any], Callable[[int, float | None], None]], Score]
"""Scores settings by their path; tells the second argument what was monitored in each epoch."""


class Study:
    """The trials that are over, and the way to the next one.

    A trial is proposed from the seed, its number and the trials before it, and enters the file when it is over. So a
    search that was killed loses the trial that it was in, and goes on as if nothing had happened.

    Attributes:
        knobs: what may change.
    """

    def __init__(
        self,
        knobs: Sequence[Knob],
        seed: int,
        higher: bool,
        pruned_from: int | None,
        path: Path | None,
        facts: Mapping[str, str],
    ) -> None:
        """Open a study.

        Args:
            knobs: what may change.
            seed: of the proposals.
            higher: whether a higher score is better.
            pruned_from: epoch from which trials may be pruned, or None.
            path: file to keep it in, read if it is there; None keeps nothing.
            facts: everything that the scores depend on besides the settings.

        Raises:
            SpecError: Optuna is not installed, or the file is no study of the same facts.
        """
        self._optuna, self.knobs, self._seed = _optuna(), knobs, seed
        pruners, self._direction = self._optuna.pruners, "maximize" if higher else "minimize"
        pruner = pruners.NopPruner() if pruned_from is None else pruners.MedianPruner(BEFORE_PRUNING, pruned_from)
        with self._calm():
            self._study = self._optuna.create_study(direction=self._direction, pruner=pruner)
            self._kept = None if path is None else self._open(path, facts)
            if self._kept is not None:
                self._study.add_trials(self._kept.trials)
            if not self._study.trials:
                self._study.enqueue_trial({knob.path: knob.start for knob in knobs if knob.start is not None})

    def __len__(self) -> int:
        """Return how many trials are over."""
        return sum(trial.state.is_finished() for trial in self._study.trials)

    def trial(self, run: Run) -> None:
        """Propose settings, score them, and keep what came of it. The first trial has none but the start's.

        Raises:
            PolymodalError: the start itself cannot be scored.
        """
        number = len(self)
        inside = all(knob.start is not None for knob in self.knobs)
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        self._study.sampler = self._optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM, multivariate=inside)
        with self._calm():
            trial = self._study.ask()
            drawn = {knob.path: _draw(trial, knob) for knob in self.knobs if number or knob.start is not None}
        settings = {knob.path: knob.setting(drawn[knob.path]) for knob in self.knobs if number}
        told: dict[str, Any] = {}
        try:
            score = run(settings, lambda epoch, value: self._watch(trial, epoch, value))
        except self._optuna.TrialPruned:
            told["state"] = self._optuna.trial.TrialState.PRUNED
        except PolymodalError as error:
            if not number:
                raise
            trial.set_user_attr("reason", str(error))
            told["state"] = self._optuna.trial.TrialState.FAIL
        else:
            told["values"] = score.value
            trial.set_user_attr("folds", score.folds)
            trial.set_user_attr("epochs", score.epochs)
        frozen = self._study.tell(trial, **told)
        if self._kept is not None:
            self._kept.add_trial(frozen)

    def trials(self) -> list[dict[str, Any]]:
        """Trials that are over, as JSON: number, state, score, folds, epochs, settings, reason."""
        states = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        by_path, found = {knob.path: knob for knob in self.knobs}, []
        for trial in self._study.trials:
            if not trial.state.is_finished():
                continue
            epochs = trial.user_attrs.get("epochs", [len(trial.intermediate_values)])
            found.append(
                {
                    "number": trial.number,
                    "state": states[trial.state.name],
                    "score": trial.value if trial.state.name == "COMPLETE" else None,
                    "folds": trial.user_attrs.get("folds", []),
                    "epochs": epochs,
                    "settings": {path: by_path[path].setting(x) for path, x in trial.params.items()},
                    "reason": trial.user_attrs.get("reason"),
                }
            )
        return found

    def importances(self) -> dict[str, float] | None:
        """Share of each setting in what makes trials differ, largest first; None with too few complete trials.

        Source: PED-ANOVA, Watanabe et al. 2023 (arXiv:2304.10255), as in Optuna.
        """
        complete = [trial for trial in self._study.trials if trial.state.name == "COMPLETE"]
        if len(complete) < JUDGED or len(self.knobs) < 2:
            return None
        with self._calm():
            return dict(self._optuna.importance.get_param_importances(self._study))

    def _watch(self, trial: Any, epoch: int, value: float | None) -> None:
        if value is None or not trial.number:
            return
        trial.report(value, epoch)
        if trial.should_prune():
            raise self._optuna.TrialPruned

    def _open(self, path: Path, facts: Mapping[str, str]) -> Any:
        """The study in a file, new if there is none."""
        backends = self._optuna.storages.journal
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _mend(path)
            backend = backends.JournalFileBackend(str(path), lock_obj=backends.JournalFileOpenLock(str(path)))
            storage = self._optuna.storages.JournalStorage(backend)
            study = self._optuna.create_study(
                study_name=NAME, storage=storage, direction=self._direction, load_if_exists=True
            )
        except OSError as error:
            raise SpecError(f"study: {path} must be a file that can be written, got: {error}.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SpecError(
                f"study: {path} must be a study of polymodal search, got: {error}. Choose another file."
            ) from None
        known = study.user_attrs.get("facts")
        for name in (name for name in facts if known is not None and known.get(name) != facts[name]):
            raise SpecError(
                f"study: {path} must be of this very search, got one with another {name}. "
                "Choose another file, or remove it to begin anew."
            )
        if known is None:
            study.set_user_attr("facts", dict(facts))
        return study

    @contextmanager
    def _calm(self) -> Iterator[None]:
        """Without Optuna's lines on its own progress."""
        logging = self._optuna.logging
        level = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"optuna\.")
                yield
        finally:
            logging.set_verbosity(level)


def _draw(trial: Any, knob: Knob) -> Any:
    """A value's text or a number, as Optuna proposes."""
    numbers = knob.range
    if numbers is None:
        return trial.suggest_categorical(knob.path, list(knob.values))
    if knob.whole:
        step = {} if numbers.step is None else {"step": int(numbers.step)}
        return trial.suggest_int(knob.path, int(numbers.low), int(numbers.high), log=numbers.log, **step)
    return trial.suggest_float(knob.path, numbers.low, numbers.high, log=numbers.log, step=numbers.step)


def _mend(path: Path) -> None:
    """Cut off a last line that a killed process has not finished.

    Raises:
        ValueError: the file holds something else.
    """
    content = path.read_bytes() if path.exists() else b""
    if content and not content.startswith(b'{"op_code"'):
        raise ValueError("a file of another kind")
    if content and not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise SpecError(
            "search must have optuna installed, got no such package. Run: pip install 'polymodal[search]'"
        ) from None
    return optuna
