"""The model card: what a bundle is, for the person who finds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from polymodal.spec import Spec
from polymodal.task import Task
from polymodal.tasks.match import Match


def card(spec: Spec, report: Mapping[str, Any]) -> str:
    """Markdown with inputs, outputs, scores on held-out rows, data and limits."""
    inputs = "\n".join(_row(name, part.kind, *part.columns(name)) for name, part in spec.inputs.items())
    outputs = "\n".join(_row(name, *_output(name, task)) for name, task in spec.outputs.items())
    return "\n".join(
        [
            "# Model card",
            "",
            f"A Polymodal bundle: {', '.join(spec.inputs)} -> {', '.join(spec.outputs)}.",
            f"Fusion: {spec.fusion.kind}.",
            "",
            "| input | modality | columns |\n|---|---|---|\n" + inputs,
            "",
            "| output | task | columns |\n|---|---|---|\n" + outputs,
            "",
            "## Scores",
            "",
            *_scores(report),
            "",
            "## Data",
            "",
            *_data(report),
            "",
            "## Limits",
            "",
            "Scores hold for rows like those it was fitted on. An input that is absent is left out of the answer; the",
            "scores without each input say what that costs. `report.json` holds every figure.",
            "",
            "## Use",
            "",
            "```python",
            "import polymodal as pm",
            "",
            'model = pm.load("path/to/this/folder")',
            "model.predict([{"
            + ", ".join(f"{json.dumps(c)}: ..." for n, p in spec.inputs.items() for c in p.columns(n))
            + "}])",
            "```",
            "",
        ]
    )


def _output(name: str, task: Task) -> tuple[str, ...]:
    """Kind and columns; for tasks without any, the inputs that they learn from."""
    if task.about is not None:
        return task.kind, ", ".join(task.columns(name)) + f", for each word of {task.about}"
    sides = f"none: {' and '.join(task.names)} of one row" if isinstance(task, Match) else "none"
    return task.kind, ", ".join(task.columns(name)) or sides


def _row(name: str, kind: str, *columns: str) -> str:
    cells = (" ".join(cell.split()).replace("|", r"\|") for cell in (name, kind, ", ".join(columns)))
    return f"| {' | '.join(cells)} |"


def _scores(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for side in ("test", "valid"):
        for name, task in report.get(side, {}).get("tasks", {}).items():
            metric = task["headline"]
            if metric is None:
                continue
            rows = report[side]["rows"]
            parts = [f"{metric} {task['scores'][metric]:.3f}"]
            parts += [f"without {i} {scores[metric]:.3f}" for i, scores in task["without"].items() if metric in scores]
            lines.append(f"- {name}, {rows} {side} rows: {', '.join(parts)}.")
    return lines or ["No labelled rows were held out."]


def _data(report: Mapping[str, Any]) -> list[str]:
    data = report.get("data", {})
    lines = [f"- {data.get('rows', 0)} rows from `{data.get('source', '?')}`."]
    for name, seen in data.get("inputs", {}).items():
        lines.append(f"- {name}: {seen['present']} present, {seen['absent']} absent, {seen['quarantined']} broken.")
    return lines
