"""The measurements of serving.py, one after another."""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import serving_apps

import polymodal as pm
from polymodal.runtimes import choose
from polymodal.server.settings import Settings
from polymodal.trials.agreement import Reference, tolerance_of
from polymodal.trials.ask import Request, Row, as_form, as_json, best_form
from polymodal.trials.load import LoadReport, run_load
from polymodal.trials.trial import Started, measure, started, usage

APPS = Path(__file__).with_name("serving_apps.py")
CLIENTS = 16
OPEN = 64
"""Connections of a load at a rate: more than ever wait at once."""
FLOAT = "onnxruntime"
"""Runtime that `Bundle.predict` takes by default, so the one of FastAPI and LitServe."""


class Bench:
    """One run of everything.

    Attributes:
        found: every number; JSON.
    """

    def __init__(self, options: argparse.Namespace, bundle: Path, table: str | None) -> None:
        self.options, self.folder, self.table = options, bundle, table
        self.found: dict[str, Any] = {"commands": []}

    def run(self) -> dict[str, Any]:
        """Measure everything."""
        self.start()
        self.requests()
        self.bare()
        self.rounds()
        self.alone()
        self.empty()
        if self.options.soak:
            self.soak()
        return self.found

    def serve(self, name: str) -> AbstractContextManager[Started]:
        """A server by its name in the tables."""
        if name.startswith("polymodal"):
            runtime = FLOAT if name.endswith("float32") else self.options.runtime
            self._note([sys.executable, "-m", "polymodal.cli", "serve", str(self.folder), "--runtime", runtime])
            return started(self.folder, ["--runtime", runtime])
        own = [str(APPS.with_name("serving_litserve.py"))] if name == "litserve" else [str(APPS), name]
        program = [sys.executable, *own, "--bundle", str(self.folder)]
        self._note(program)
        return started(self.folder, program=program)

    def start(self) -> None:
        """Time from the start of the process to ready: with nothing in the cache folder, and again."""
        self.found["start"] = []
        for _ in range(2):
            with self.serve("polymodal") as server:
                self.found["start"].append(server.seconds)
        self._say(f"start to ready: {self.found['start']}")

    def requests(self) -> None:
        """Make requests, and what they must be answered by each runtime."""
        self.bundle = pm.load(self.folder)
        self.threads = Settings.make(self.folder).call_threads
        choice = choose(self.bundle, runtime=self.options.runtime, threads=self.threads)
        self.found["runtimes"], self.found["choice"] = dict(choice.names), choice.lines()
        self.names = {"polymodal": dict(choice.names), "float": dict.fromkeys(choice.names, FLOAT)}
        plain = {field.column for field in serving_apps.fields(self.bundle.spec)}
        media = {c for n, p in self.bundle.spec.inputs.items() if p.media for c in p.columns(n)}
        texts = {c for n, p in self.bundle.spec.inputs.items() if p.kind == "text" for c in p.columns(n)}
        self.columns = {"upload": sorted(media | texts), "text + table": sorted(plain - media), "all": sorted(plain)}
        self.other: dict[tuple[str, str], list[Request]] = {}
        self.sets = {name: self._set(name, columns) for name, columns in self.columns.items()}

    def _set(self, which: str, columns: Sequence[str]) -> tuple[list[Request], dict[str, Reference]]:
        """Requests of rows with these columns, and their answers by the runtimes of ours and of the baselines."""
        rows: list[Row] = serving_apps.chosen(self.bundle, self.table, columns)
        rows = [row for row in rows if any(value is not None for value in row.values())]
        if self.options.quick:
            rows = rows[:4]
        references = {}
        for whose, names in self.names.items():
            embedder = self.bundle.embedder.with_runtimes(names, self.threads)
            answers = replace(self.bundle, embedder=embedder).predict(rows)
            references[whose] = Reference(answers, tolerance_of(names.values(), same=True))
        self.other[which, "litserve"] = [as_json([row], i) for i, row in enumerate(rows)]
        self.other[which, "fastapi"] = [as_form(row, i) for i, row in enumerate(rows)]
        return [best_form(row, i) for i, row in enumerate(rows)], references

    def load(self, server: Started, which: str, whose: str = "polymodal", **options: Any) -> LoadReport:
        """Load a server for the time of a measurement and compare its answers. LitServe takes JSON, FastAPI forms."""
        requests, references = self.sets[which]
        requests = self.other.get((which, whose), requests)
        expect = references["polymodal" if whose == "polymodal" else "float"]
        return measure(server, requests, expect=expect, **{"seconds": self.options.seconds} | options)

    def bare(self) -> None:
        """What decoding and the model alone cost, in a loop of a process of its own."""
        self.found["bare"] = {}
        for whose, runtime in {"polymodal": self.options.runtime, "float": FLOAT}.items():
            command = [sys.executable, str(APPS), "loop", "--bundle", str(self.folder), "--runtime", runtime]
            command += ["--columns", *self.columns["upload"], "--seconds", str(self.options.seconds)]
            command += [] if self.table is None else ["--table", self.table]
            self._note(command)
            tries = []
            for _ in range(self.options.repeats):
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                tries.append(json.loads(done.stdout.splitlines()[-1]))
            costs = {key: statistics.median(found[key] for found in tries) for key in ("cpu_ms_1", "cpu_ms_16")}
            self.found["bare"][whose] = tries[0] | costs
            self._say(f"bare, {runtime}: {costs}")

    def rounds(self) -> None:
        """Image and text from sixteen clients, to every server in turn, several times over."""
        names = ["polymodal", "polymodal, float32", *(name for name in ("fastapi", "litserve") if find_spec(name))]
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(self.options.repeats):
            for name in names:
                with self.serve(name) as server:
                    self.load(server, "upload", name, clients=CLIENTS, seconds=self.options.seconds / 4)  # warm
                    report = self.load(server, "upload", name, clients=CLIENTS)
                found[name].append(report.to_dict() | {"start": server.seconds})
                self._say(f"{name}: {report.lines()[1:]}")
        self.found["rounds"] = found
        self.found["throughput"] = {
            name: statistics.median(report["throughput"] for report in reports) for name, reports in found.items()
        }

    def alone(self) -> None:
        """At half of that load; one client with image and text; one client with text and table."""
        rate = self.found["throughput"]["polymodal"] / 2
        plans: dict[str, dict[str, Any]] = {
            "half": {"which": "upload", "clients": OPEN, "rate": rate},
            "one client, image + text": {"which": "upload", "clients": 1},
            "one client, text + table": {"which": "text + table", "clients": 1},
        }
        with self.serve("polymodal") as server:
            for which in self.sets:
                self.load(server, which, clients=CLIENTS, seconds=self.options.seconds / 4)  # warm
            for name, plan in plans.items():
                reports = [self.load(server, **plan) for _ in range(self.options.repeats)]
                self.found[name] = [report.to_dict() for report in reports]
                self._say(f"{name}: {reports[-1].lines()}")

    def empty(self) -> None:
        """The same app around a model that does nothing, and a bare Starlette route that reads the body."""
        found: dict[str, list[dict[str, Any]]] = {}
        for _ in range(self.options.repeats):
            for name in ("empty", "starlette"):
                with self.serve(name) as server:
                    for which in ("text + table", "upload"):
                        requests, _ = self.sets[which]
                        seconds = self.options.seconds / 2
                        measure(server, requests, clients=1, seconds=seconds / 4)  # warm
                        report = measure(server, requests, clients=1, seconds=seconds)
                        found.setdefault(f"{name}, {which}", []).append(report.to_dict())
                        self._say(f"{name}, {which}: {report.lines()}")
        self.found["empty"] = found

    def soak(self) -> None:
        """Sixteen clients for long, every answer compared; memory when a tenth has passed and at the end."""
        requests = [request for which in self.sets for request in self.sets[which][0]]
        rows = [row for which in self.sets for row in self.sets[which][1]["polymodal"].rows]
        requests = [replace(request, first=i) for i, request in enumerate(requests)]
        reference = Reference(rows, tolerance_of(self.names["polymodal"].values(), same=True))
        seconds, memory = self.options.soak, list[tuple[float, int]]()

        async def watch(pid: int) -> None:
            for share in range(1, 21):
                await asyncio.sleep(seconds / 20)
                if (now := usage(pid)) is not None:
                    memory.append((share / 20, now[1]))

        async def both(server: Started) -> LoadReport:
            load = run_load(f"{server.url}/v1/predict", requests, clients=CLIENTS, seconds=seconds, expect=reference)
            report, _ = await asyncio.gather(load, watch(server.pid))
            return report

        with self.serve("polymodal") as server:
            report = asyncio.run(both(server))
        self.found["soak"] = report.to_dict() | {"memory": memory}
        self._say(f"soak: {report.lines()}")

    def _note(self, command: Sequence[str]) -> None:
        text = shlex.join(["python", *command[1:]])
        if text not in self.found["commands"]:
            self.found["commands"].append(text)

    @staticmethod
    def _say(text: str) -> None:
        print(f"... {text}", file=sys.stderr, flush=True)
