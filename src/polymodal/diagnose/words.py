"""The verdict in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CEILINGS = {"alone": "the model alone", "own_head": "its own head", "linear": "linear"}
"""What a ceiling was reached by, in words."""

NAMED = 4
"""How many inputs a sentence names."""


def short(value: float | None) -> str:
    """A score in three figures or so: .44, -.01, 12.3; "unknown" where there is none."""
    if value is None:
        return "unknown"
    if abs(value) >= 9.995:
        return f"{value:.3g}"
    text = f"{value:.2f}"
    return ".00" if text in ("0.00", "-0.00") else text.replace("0.", ".", 1) if abs(value) < 0.995 else text


def line(who: str, kind: str, numbers: Mapping[str, Any]) -> str:
    """One line about an input: its kind, and the numbers that made it so."""
    if not numbers["present"]:
        return f"{who}: {kind}. It is absent from every row."
    return f"{who}: {kind}. {_WORDS[kind](numbers)}"


def summary(tasks: Mapping[str, Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]) -> str:
    """What a reader in a hurry must know: how good the model is, and which inputs need a look."""
    sentences = []
    for n, task in tasks.items():
        own = [entry for entry in entries if entry["task"] == n]
        worth = _worth(task)
        sentences.append(f"{n}: {worth}" if len(tasks) > 1 else worth[0].upper() + worth[1:])
        odd = [f"{entry['input']} is {entry['kind']}" for entry in own if entry["kind"] != "fine"]
        more = f" and {len(odd) - NAMED} more are not fine" if len(odd) > NAMED else ""
        words = [*_together(own), *([", ".join(odd[:NAMED]) + more] if odd else [])]
        sentences.append(f"Of its inputs, {'; '.join(words)}." if words else "All of its inputs are fine.")
    return " ".join(sentences)


def _worth(task: Mapping[str, Any]) -> str:
    """How good the whole model is, against what needs no input."""
    metric, score, floor = task["metric"].replace("_", " "), short(task["score"]), short(task["chance"])
    if task["lift"]["noise"]:
        return f"{metric} {score} is within noise of {floor}, which needs no input: {task['rows']} rows show no signal."
    low, high = task["interval"]
    return f"{metric} {score} (95 % interval {short(low)} to {short(high)}) against {floor} without any input."


def _together(own: Sequence[Mapping[str, Any]]) -> list[str]:
    """Pairs of fine inputs that say nothing alone and much together."""
    fine = {entry["input"]: entry["numbers"] for entry in own if entry["kind"] == "fine"}
    found = []
    for name, numbers in fine.items():
        other = numbers["pairs"].get("synergy", {}).get("with")
        if other in fine and not numbers["says"] and not fine[other]["says"]:
            pair = sorted((name, other))
            found.append(f"{pair[0]} and {pair[1]} only work together")
    return list(dict.fromkeys(found))


def _contribution(numbers: Mapping[str, Any]) -> str:
    return f"contribution {short(numbers['contribution'])}" + (" (within noise)" if numbers["noise"] else "")


def _potential(numbers: Mapping[str, Any]) -> str:
    by = "" if numbers["by"] == "alone" else f", its features could give {short(numbers['ceiling'])}"
    how = "" if numbers["by"] == "alone" else f" ({CEILINGS[numbers['by']]})"
    return f"Alone {short(numbers['alone'])}{by}{how}, {_contribution(numbers)}."


def _unused(numbers: Mapping[str, Any]) -> str:
    floor = short(numbers["chance"])
    return (
        f"{_potential(numbers)} Without any input it is {floor}: nothing shows in it, and nothing is lost without it."
    )


def _under_trained(numbers: Mapping[str, Any]) -> str:
    share = numbers.get("gradient_share")
    if numbers.get("use") != "under" or share is None:
        return _potential(numbers)
    return f"{_potential(numbers)} It had only {100 * share:.0f} % of the gradient."


def _noisy(numbers: Mapping[str, Any]) -> str:
    broken = numbers["broken"] or 0.0
    cells = f" {100 * broken:.0f} % of its cells could not be read." if broken else ""
    worth = "It helps where it can be read." if numbers["helps"] else "It carries something, but nothing to rely on."
    return f"{_potential(numbers)}{cells} {worth}"


def _redundant(numbers: Mapping[str, Any]) -> str:
    pair = numbers["pairs"].get("redundancy")
    same = "the same" if numbers["noise"] else "nearly the same"
    others = f"the others carry {same}"
    if pair is not None:
        others = f"{pair['with']} carries {same} (interaction {short(pair['interaction'])})"
    return f"Alone {short(numbers['alone'])}, {_contribution(numbers)}: {others}."


def _harmful(numbers: Mapping[str, Any]) -> str:
    score, without = short(numbers["score"]), short(numbers["without"])
    what = f"The score is {score} with it and {without} without it."
    if not numbers["hurts"]:
        what = f"The score is {score}, and better by {short(-numbers['permuted'])} where its values are shuffled."
    return f"{what} Leave it out, or look at how these rows differ from those it was trained on."


def _fine(numbers: Mapping[str, Any]) -> str:
    pair = numbers["pairs"].get("synergy")
    together = ""
    if pair is not None:
        together = f" Together with {pair['with']} it does more than alone (interaction {short(pair['interaction'])})."
    if numbers["spoiled"]:
        together += (
            f" Alone it does better than everything together ({short(numbers['score'])}): another input spoils it."
        )
    return f"Alone {short(numbers['alone'])}, {_contribution(numbers)}.{together}"


_WORDS = {
    "unused": _unused, "under-trained": _under_trained, "noisy": _noisy, "redundant": _redundant,
    "harmful": _harmful, "fine": _fine,
}  # fmt: skip


def block(content: Mapping[str, Any]) -> str:
    """A diagnosis for the terminal: verdict, summary, then a table per task."""
    lines = [entry["text"] for entry in content["verdict"]] + [
        f"Try: {entry['try']}" for entry in content["verdict"] if entry["try"] and entry["input"] == content["weakest"]
    ][:1]
    tables = [_table(n, task) for n, task in content["tasks"].items()]
    return "\n\n".join(["\n".join([*lines, "", content["summary"]]), *tables])


def _table(name: str, task: Mapping[str, Any]) -> str:
    titles = ("present", "alone", "ceiling", "without", "contribution", "Shapley", "permuted")
    rows = []
    for i, seen in task["inputs"].items():
        permuted = seen["permuted"] or {"score": None}
        numbers = [seen["alone"]["score"], seen["ceiling"]["score"], seen["without"]]
        numbers += [seen["contribution"]["value"], seen["shapley"]["value"], permuted["score"]]
        marks = ["", "", "", *("~" if seen[x]["noise"] else "" for x in ("contribution", "shapley")), ""]
        cells = [mark + short(value) for mark, value in zip(marks, numbers, strict=True)]
        rows.append([i, f"{100 * seen['present']:.0f} %", *cells])
    head = [f"{name} ({task['metric']}, {task['rows']} rows)", *titles]
    width = max(len(row[0]) for row in [head, *rows]) + 2
    lines = [row[0].ljust(width) + "".join(cell.rjust(14) for cell in row[1:]) for row in [head, *rows]]
    pairs = [
        f"{' + '.join(p['inputs'])}: {p['kind']} {short(p['interaction'])}" for p in task["pairs"] if not p["noise"]
    ]
    low_high = "" if task["interval"] is None else " (95 % interval {} to {})".format(*map(short, task["interval"]))
    full = f"everything {short(task['score'])}{low_high}, nothing {short(task['chance'])}, ~ within noise"
    return "\n".join([*lines, full, *([", ".join(pairs)] if pairs else [])])
