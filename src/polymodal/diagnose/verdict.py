"""The verdict: one word per input, and the numbers behind it.

Every rule reads differences of scores with their intervals. All are counted so that above 0 the input helps.

| number | what |
|---|---|
| gain | score of the model on this input alone, above chance |
| potential | best of that, the input's own head and a linear model on its features, above chance |
| headroom | potential - gain: what its features could give and the model does not make of them |
| contribution | score of everything - score without this input |
| permuted | score of everything - score with this input dealt out anew among the rows |
| overlap | gain - contribution: what it says alone and adds no more to the others |
| others | score of everything - score of the model on this input alone |

Chance is what needs no input. A difference is *credible* if its 95 % interval does not hold 0, it is larger than half
of that interval's width, widened for two looks at each input (Bonferroni, as a normal's would be), and it is at least
2 % of the best that anything reaches above chance. Percentile intervals alone are too sure where few rows differ: four
rows that all got better are no proof. A contribution is *spare* if it is noise or below a twentieth of the gain, and
its interval ends below a quarter of the gain: that others carry the same must be shown, not only that no difference
was. The first rule that holds names the kind:

| kind | rule |
|---|---|
| unused | it is absent from every row |
| harmful | contribution or permuted is credibly below 0 |
| under-trained | headroom and potential are credible, and gain and contribution are both under 2/3 of the potential |
| noisy | at least 20 % of its cells could not be read |
| redundant | gain is credible, overlap or a redundant pair too, contribution is spare, others is not below 0 |
| fine | contribution or permuted is credible, or gain and Shapley value are |
| noisy | gain or potential is credible: it carries something that cannot be relied on |
| unused | none of this |

Beside a credible synergy, a credible Shapley value counts as a gain: an input that says nothing alone may say much with
a partner. The word *weakest* goes to the input with the largest credible headroom, as a share of the best that anything
reaches above chance, among those that are under-trained, noisy or redundant.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

from polymodal.diagnose.words import line, summary

MATERIAL = 0.02
"""Share of the best gain of a task below which a difference does not matter."""

MADE = 2 / 3
"""Share of an input's potential that a model must make of it."""

SPARED = (1 / 20, 1 / 4)
"""Shares of the gain: the most that a spare contribution may be unless it is noise, and where its interval ends."""

BROKEN = 0.2
"""Share of broken cells that makes an input noisy."""

REPAIRABLE = ("under-trained", "noisy", "redundant")
"""Kinds that training may repair, where there is headroom."""

TRY = "polymodal improve model/ train.csv"
"""What repairs an input, with names that stand for the user's own."""


def verdict(
    tasks: Mapping[str, Mapping[str, Any]], learning: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
) -> dict[str, Any]:
    """Judge every input of every task.

    Args:
        tasks: ``tasks`` of a diagnosis.
        learning: ``learning`` of a diagnosis.

    Returns:
        ``verdict`` (one mapping per task and input), ``weakest`` (an input's name or None) and ``summary``.
    """
    entries = []
    for n, task in tasks.items():
        judge = Judge(task)
        for name in task["inputs"]:
            kind, numbers = judge.kind(name), judge.numbers(name)
            if learning is not None:
                numbers |= learning.get(n, {}).get(name, {})
            repair = kind in REPAIRABLE and judge.credible(task["inputs"][name]["headroom"]) > 0
            entries.append(
                {
                    "task": n,
                    "input": name,
                    "kind": kind,
                    "text": line(name if len(tasks) == 1 else f"{n}, {name}", kind, numbers),
                    "numbers": numbers,
                    "try": f"{TRY} --input {shlex.quote(name)}" if repair else None,
                }
            )
    weak = [entry for entry in entries if entry["try"] is not None]
    weakest = max(weak, key=lambda entry: entry["numbers"]["room"])["input"] if weak else None
    return {"verdict": entries, "weakest": weakest, "summary": summary(tasks, entries)}


class Judge:
    """The rules, on one task of a diagnosis."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.task, self.inputs = task, task["inputs"]
        tops = [task["lift"], *(seen["potential"] for seen in self.inputs.values())]
        self.reach = max([0.0, *(top["value"] or 0.0 for top in tops)])
        looks = 2 * max(1, len(self.inputs))
        self.widening = NormalDist().inv_cdf(1 - 0.025 / looks) / NormalDist().inv_cdf(0.975)

    def credible(self, seen: Mapping[str, Any] | None) -> int:
        """1 or -1 where a difference is credibly above or below 0, else 0."""
        if seen is None or seen["value"] is None or seen["interval"] is None:
            return 0
        value, (low, high) = seen["value"], seen["interval"]
        if value == 0 or abs(value) < MATERIAL * self.reach:
            return 0
        sure = abs(value) > self.widening * (high - low) / 2
        return int(sure and low > 0) - int(sure and high < 0)

    def kind(self, name: str) -> str:
        """Name the kind of an input by the first rule that holds."""
        seen = self.inputs[name]
        helps, moved, says, could = (
            self.credible(x) for x in (seen["contribution"], self._lost(name), seen["gain"], seen["potential"])
        )
        says = max(says, int(self.credible(seen["shapley"]) > 0 and self.partner(name, "synergy") is not None))
        shared = self.credible(seen["overlap"]) > 0 or self.partner(name, "redundancy") is not None
        rules = (
            ("unused", not seen["present"]),
            ("harmful", helps < 0 or moved < 0),
            ("under-trained", could > 0 and self.credible(seen["headroom"]) > 0 and self.made(name) < MADE),
            ("noisy", (seen.get("broken") or 0.0) >= BROKEN),
            ("redundant", says > 0 and self.spare(name) and shared and self.credible(seen["others"]) >= 0),
            ("fine", helps > 0 or moved > 0 or (says > 0 and self.credible(seen["shapley"]) > 0)),
            ("noisy", says > 0 or could > 0),
        )
        return next((kind for kind, holds in rules if holds), "unused")

    def made(self, name: str) -> float:
        """What the model makes of an input, alone or beside the others, as a share of its potential."""
        seen = self.inputs[name]
        potential = seen["potential"]["value"] or 0.0
        most = max(seen["gain"]["value"] or 0.0, seen["contribution"]["value"] or 0.0)
        return max(0.0, most) / potential if potential > 0 else 1.0

    def spare(self, name: str) -> bool:
        """Whether the others surely do almost as well without an input."""
        seen = self.inputs[name]
        added, worth = seen["contribution"], max(seen["gain"]["value"] or 0.0, seen["shapley"]["value"] or 0.0)
        if added["interval"] is None or not (added["noise"] or added["value"] <= SPARED[0] * worth):
            return False
        return added["interval"][1] <= SPARED[1] * worth

    def partner(self, name: str, kind: str) -> str | None:
        """The input with which this one has the strongest credible interaction of a kind; None without one."""
        sign = 1 if kind == "synergy" else -1
        found = {}
        for pair in self.task["pairs"]:
            value = pair["interaction"]
            if name in pair["inputs"] and self.credible({"value": value, "interval": pair["interval"]}) == sign:
                other = next(x for x in pair["inputs"] if x != name)
                found[other] = abs(value)
        return max(found, key=found.__getitem__) if found else None

    def numbers(self, name: str) -> dict[str, Any]:
        """What stands behind the word."""
        seen, task = self.inputs[name], self.task
        headroom = seen["headroom"]["value"]
        pairs = {}
        for kind in ("synergy", "redundancy"):
            if (other := self.partner(name, kind)) is not None:
                value = next(p["interaction"] for p in task["pairs"] if set(p["inputs"]) == {name, other})
                pairs[kind] = {"with": other, "interaction": value}
        return {
            "score": task["score"],
            "chance": task["chance"],
            "alone": seen["alone"]["score"],
            "ceiling": seen["ceiling"]["score"],
            "by": seen["ceiling"]["by"],
            "gain": seen["gain"]["value"],
            "headroom": headroom,
            "room": (headroom or 0.0) / self.reach if self.reach else 0.0,
            "made": self.made(name),
            "contribution": seen["contribution"]["value"],
            "noise": seen["contribution"]["noise"],
            "helps": self.credible(seen["contribution"]) > 0,
            "hurts": self.credible(seen["contribution"]) < 0,
            "without": seen["without"],
            "shapley": seen["shapley"]["value"],
            "permuted": None if seen["permuted"] is None else seen["permuted"]["loss"],
            "moved": self.credible(self._lost(name)),
            "says": self.credible(seen["gain"]) > 0,
            "spoiled": self.credible(seen["others"]) < 0,
            "present": seen["present"],
            "broken": seen.get("broken"),
            "pairs": pairs,
        }

    def _lost(self, name: str) -> dict[str, Any] | None:
        permuted = self.inputs[name]["permuted"]
        return None if permuted is None else {"value": permuted["loss"], "interval": permuted["interval"]}
