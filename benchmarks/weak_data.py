"""The tables of weak.py: stamps with voice, room occupancy split by day, stock movements with tweets."""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polymodal as pm


@dataclass(frozen=True, slots=True)
class Problem:
    """One data set as weak.py takes it.

    Attributes:
        spec: to fit; without ``training`` and ``seed``.
        training: settings of it that differ from the default, ``balance`` aside.
        train: table to learn from, validation rows included.
        test: table to score on.
        target: the one task's name.
        metrics: what is printed.
        note: figures from elsewhere, and whose.
    """

    spec: Mapping[str, Any]
    training: Mapping[str, Any]
    train: pm.Table
    test: pm.Table
    target: str
    metrics: tuple[str, ...]
    note: str


def stamps(folder: Path, rows: int | None = None) -> Problem:
    """Picture, text, spoken text and table -> one of eight kinds of stamp. 527 / 176 rows."""
    sides = [pm.Table.read(folder / "stamps" / f"{side}.csv") for side in ("train", "test")]
    train, test = (side.head(rows) if rows else side for side in sides)
    found = pm.inspect(sides[0], "label").spec
    assert found is not None
    spec = found.model_dump(mode="json", exclude={"training", "seed"})
    note = "AutoGluon-MM without voice .869, text removed .358; logistic regression on frozen text and table .915."
    return Problem(spec, {}, train, test, "label", ("accuracy", "macro_f1"), note)


SENSORS = {
    "temperature": [f"S{i}_Temp" for i in (1, 2, 3, 4)],
    "light": [f"S{i}_Light" for i in (1, 2, 3, 4)],
    "sound": [f"S{i}_Sound" for i in (1, 2, 3, 4)],
    "co2": ["S5_CO2", "S5_CO2_Slope"],
    "pir": ["S6_PIR", "S7_PIR"],
}
EVERY = 4
"""Of the rows to learn from, so many are one: they are half a minute apart and say nearly the same."""

OCCUPIED = "2017-12-23"
"""The day to validate on: of the five days to learn from, only it and the first saw people."""


def occupancy(folder: Path, rows: int | None = None) -> Problem:
    """Five kinds of sensor -> how many people are in the room. The last two of seven days test."""
    whole = _read(folder / "occupancy" / "Occupancy_Estimation.csv")
    last = sorted({row["Date"] for row in whole})[-2:]
    sides: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for row in whole[:: max(1, len(whole) // rows) if rows else 1]:
        sides[row["Date"] in last].append(row | {"side": "valid" if row["Date"] == OCCUPIED else "train"})
    inputs = {name: {"type": "table", "numbers": columns} for name, columns in SENSORS.items()}
    task = {"type": "classify", "column": "Room_Occupancy_Count"}
    spec = {"inputs": inputs, "outputs": {"people": task}, "split": {"given": "side"}}
    note = "Random forest, same split: PIR alone .929, all sensors .882."
    train = _table(sides[False][::EVERY])
    return Problem(spec, {}, train, _table(sides[True]), "people", ("accuracy", "macro_f1"), note)


SIDES = {
    "train": ("2014-01-01", "2015-08-01"),
    "valid": ("2015-08-01", "2015-10-01"),
    "test": ("2015-10-01", "2016-01-01"),
}
UP, DOWN = 0.0055, -0.005
DAYS = 5
TWEETS = 3
"""Tweets of the last day before the movement that has any: more cost time, and StockNet's gain is as small."""


def stocknet(folder: Path, rows: int | None = None) -> Problem:
    """Prices of five days and the latest tweets -> whether the stock rises or falls on the next.

    Source: Xu and Cohen 2018, "Stock Movement Prediction from Tweets and Historical Prices", section 3: labels above
    .55 % and at most -.5 %, the same periods; tweets of the day itself are left out.
    """
    place, found = folder / "stocknet", defaultdict[str, list[dict[str, Any]]](list)
    tweets = _tweets(place / "tweets.jsonl.gz")
    for file in sorted((place / "price_raw").glob("*.csv")):
        for row in _movements(file, tweets.get(file.stem, {})):
            found[row["side"]].append(row)
    if rows:
        found = {side: part[:: max(1, len(part) // rows)] for side, part in found.items()}
    numbers = [f"{what}_{back}" for back in range(1, DAYS + 1) for what in ("close", "high", "low", "volume")]
    inputs = {"tweets": "text", "prices": {"type": "table", "numbers": numbers}}
    spec = {"inputs": inputs, "outputs": {"move": "classify"}, "split": {"given": "side"}}
    note = "StockNet .5823 / MCC .081, PEN .5989 / .156, as published."
    train = _table(found["train"] + found["valid"])
    training = {"batch_size": 512, "epochs": 20}
    return Problem(spec, training, train, _table(found["test"]), "move", ("accuracy", "mcc"), note)


def _movements(file: Path, tweets: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Rows of one stock, those in between up and down left out."""
    days = [day for day in _read(file) if "null" not in day.values()]
    rows = []
    for i in range(DAYS + 1, len(days)):
        day, change = days[i]["Date"], _ratio(days, i, "Adj Close")
        side = next((name for name, (start, end) in SIDES.items() if start <= day < end), None)
        if side is None or DOWN < change <= UP:
            continue
        row: dict[str, Any] = {"side": side, "stock": file.stem, "day": day, "move": "up" if change > UP else "down"}
        for back in range(1, DAYS + 1):
            j = i - back
            row |= {f"close_{back}": _ratio(days, j, "Adj Close"), f"volume_{back}": _ratio(days, j, "Volume")}
            row |= {
                f"{what.lower()}_{back}": float(days[j][what]) / float(days[j]["Close"]) - 1 for what in ("High", "Low")
            }
        rows.append(row | {"tweets": _latest(tweets, date.fromisoformat(day))})
    return rows


def _ratio(days: Sequence[Mapping[str, str]], i: int, column: str) -> float:
    before = float(days[i - 1][column])
    return float(days[i][column]) / before - 1 if before else 0.0


def _latest(tweets: Mapping[str, Sequence[str]], day: date) -> str | None:
    """Tweets of the last of the days before that has any."""
    for back in range(1, DAYS + 1):
        if texts := tweets.get((day - timedelta(back)).isoformat()):
            return " | ".join(list(dict.fromkeys(texts))[-TWEETS:])
    return None


def _tweets(file: Path) -> dict[str, dict[str, list[str]]]:
    """Stock -> day -> texts, in the order they came."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for tweet in map(json.loads, lines):
            found[tweet["s"]][tweet["d"]].append(tweet["t"])
    return found


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _table(rows: Sequence[Mapping[str, Any]]) -> pm.Table:
    return pm.Table.read([dict(row) for row in rows])


PROBLEMS = {"stamps": stamps, "occupancy": occupancy, "stocknet": stocknet}
