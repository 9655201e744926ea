"""How the inputs learned, and how the figures of a diagnosis were measured, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polymodal.report.figures import brief, figure, listed, percent, strings, value_of
from polymodal.report.markup import DASH, Markup, is_number, join, many, number, part, tag
from polymodal.report.page import duration
from polymodal.report.plots import bar

USES = {"over": "over-used", "under": "under-used", "even": "even", "unknown": "unknown"}

MEASURES = {
    "by itself": "The score with every other input hidden. The model stays as it is; nothing is trained again.",
    "own head": "The score of the small head that training gave this input alone.",
    "linear": "The score of a linear model on this input's features: what they hold that is easy to read.",
    "ceiling": "The best of these three: what this input could give. Beside it: how far that is above the "
    "model on this input alone.",
    "contribution": "The score with all inputs minus the score without this one.",
    "Shapley": "This input's fair share: what it adds, averaged over every order in which the inputs can join. The "
    "shares of all inputs add up to the score with all inputs minus the score with none.",
    "permuted": "The fall of the score when rows swap this input among themselves: how much the model relies on it "
    "(the perceptual score).",
    "interaction": "What two inputs give together beyond what each adds: above zero synergy, below redundancy.",
    "area": "The mean score while an input gets worse from clean to the strongest step; equal to the clean score where "
    "nothing is lost.",
    "gradient share": "How much of all that training changed fell to this input's encoder.",
    "speed": "How many epochs the input's own head took for 90 % of the fall of its loss on validation rows.",
    "95 % interval": "The figure for 95 of 100 tables like this one, from drawing its rows again with replacement.",
    "noise": "The interval holds zero: these rows cannot tell the figure from nothing.",
}

KINDS = {
    "fine": "The model makes use of it.",
    "unused": "Nothing shows in it, and nothing is lost without it.",
    "under-trained": "Its features could give more than the model makes of them.",
    "noisy": "It carries something that cannot be relied on, or many of its cells are broken.",
    "redundant": "It carries something, but other inputs carry the same.",
    "harmful": "The model does better without it, or with its values shuffled.",
}


def learning_section(diagnosis: Mapping[str, Any]) -> Markup | None:
    """Share of the gradient and speed of learning per input, by task."""
    tasks = part(diagnosis, "learning")
    drawn = [_learned(name if len(tasks) > 1 else None, part(tasks, name)) for name in tasks]
    if not any(drawn):
        return None
    note = "from the record of training: which input training worked on, and how soon it was learned"
    return tag("section", tag("h2", "Learning ", tag("small", note)), drawn)


def _learned(task: str | None, inputs: Mapping[str, Any]) -> Markup | None:
    rows = []
    for name in inputs:
        seen = part(inputs, name)
        share, speed = value_of(seen, "gradient_share"), value_of(seen, "speed")
        drawn = None if share is None else bar(share, 0.0, 1.0, "own", 1 / len(inputs))
        use = str(seen.get("use") or "unknown")
        cells = [
            tag("th", name, scope="row"),
            tag("td", drawn, cls="drawn"),
            figure(DASH if share is None else percent(share)),
            figure(DASH if speed is None else number(int(speed))),
            figure(number(value_of(seen, "fall"), 2)),
            tag("td", tag("b", USES[use]) if use in ("over", "under") else USES.get(use, use), cls="word"),
        ]
        rows.append(tag("tr", cells))
    if not rows:
        return None
    heads = [tag("th", tag("span", head, cls="unseen"), scope="col") for head in ("input", "drawn")]
    heads += [tag("th", head, scope="col", cls="num") for head in ("gradient", "epochs", "fall")]
    heads.append(tag("th", "use", scope="col", cls="word"))
    small = tag(
        "small", "Bars: share of the gradient; upright line: even shares. Epochs: until 90 % of the fall of its loss."
    )
    caption = tag("caption", f"{task}. " if task else None, small)
    return tag("table", caption, tag("thead", tag("tr", heads)), tag("tbody", rows), cls="bars learned")


def method_section(diagnosis: Mapping[str, Any]) -> Markup:
    """Settings, and one line for each measure that the page shows."""
    facts = {
        "rows": number(diagnosis["rows"]) if is_number(diagnosis.get("rows")) else None,
        "table": diagnosis.get("source"),
        "seed": number(diagnosis["seed"]) if is_number(diagnosis.get("seed")) else None,
        "processor time": duration(diagnosis["cpu_seconds"]) if is_number(diagnosis.get("cpu_seconds")) else None,
    }
    settings = part(diagnosis, "settings")
    facts |= {str(name).replace("_", " "): _plain(value) for name, value in settings.items()}
    known = [tag("div", tag("dt", name), tag("dd", brief(value))) for name, value in facts.items() if value is not None]
    terms = {name: MEASURES[name] for name in MEASURES if name in _shown(diagnosis)}
    kinds = {str(one.get("kind")) for one in listed(diagnosis, "verdict")}
    words = terms | {name: said for name, said in KINDS.items() if name in kinds}
    lines = [tag("div", tag("dt", name), tag("dd", said)) for name, said in words.items()]
    listing = tag("dl", lines, cls="terms") if lines else None
    return tag("section", tag("h2", "How it was measured"), tag("dl", known), listing)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ", ".join(strings(value)) or DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items()) or DASH
    return number(value) if isinstance(value, int | float) else value


def _shown(diagnosis: Mapping[str, Any]) -> set[str]:
    """Names of the measures that stand somewhere on the page."""
    tasks = [part(diagnosis, "tasks", name) for name in part(diagnosis, "tasks")]
    seen = [part(task, "inputs", name) for task in tasks for name in part(task, "inputs")]
    keys = {key for one in seen for key, value in one.items() if value not in (None, {}, [])}
    names = {"alone": "by itself", "own_head": "own head", "shapley": "Shapley", "curves": "area"}
    found = {names.get(key, key) for key in keys}
    gains = found & {"contribution", "Shapley", "permuted"}
    found |= {"95 % interval", "noise"} if gains else set()
    found |= {"interaction"} if any(listed(task, "pairs") for task in tasks) else set()
    return found | ({"gradient share", "speed"} if part(diagnosis, "learning") else set())


def facts_of(diagnosis: Mapping[str, Any]) -> Markup | None:
    """Size of the diagnosed table in a line."""
    parts = [many(diagnosis["rows"], "row") if is_number(diagnosis.get("rows")) else None]
    parts.append(many(len(strings(diagnosis.get("inputs"))), "input") if strings(diagnosis.get("inputs")) else None)
    said = ", ".join(one for one in parts if one)
    source = join([" of ", tag("code", diagnosis["source"])]) if diagnosis.get("source") else None
    return join([said, source, ". "]) if said else None
