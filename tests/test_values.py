from __future__ import annotations

import math
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pytest

from polymodal.values import is_missing, parse_boolean, parse_category, parse_date, parse_number

PARSERS = (parse_number, parse_boolean, parse_date, parse_category)


@pytest.mark.parametrize(
    "cell", [None, "", "  ", "NA", "n/a", " NaN ", "null", "-", math.nan, np.float32("nan"), "\n" * 20]
)
def test_missing_is_missing_to_every_parser(cell):
    assert is_missing(cell)
    assert [parse(cell) for parse in PARSERS] == [None] * 4


def test_nat_is_missing():
    assert is_missing(np.datetime64("NaT"))
    assert parse_date(np.datetime64("NaT")) is None


def test_none_is_a_category_but_no_number():
    assert parse_category("none") == "none"
    assert parse_number("None") is None
    assert parse_boolean("none") is None


@pytest.mark.parametrize("cell", [0, False, 0.0, [], {}, b"", np.zeros(3), "nothing"])
def test_present_is_not_missing(cell):
    assert not is_missing(cell)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        (3, 3.0), ("3", 3.0), (" -1.5e3 ", -1500.0), (".5", 0.5), ("5.", 5.0), ("+2", 2.0), (True, 1.0),
        ("\u22124", -4.0), ("1,234.5", 1234.5), ("1,234,567", 1234567.0), (Decimal("1.25"), 1.25),
        (np.float32(0.5), 0.5), (np.int64(7), 7.0),
    ],
)  # fmt: skip
def test_numbers(cell, number):
    assert parse_number(cell) == number


@pytest.mark.parametrize(
    "cell",
    ["1,234", "1,5", "1.234,5", "12,34.5", "inf", "-Infinity", math.inf, "1e999", 10**400, "12 kg", "0x10", "1_000",
     "٣", "12%", b"1", [1.0], {}, date(2024, 1, 1)],
)  # fmt: skip
def test_broken_numbers(cell):
    with pytest.raises(ValueError, match="number is expected"):
        parse_number(cell)


@pytest.mark.parametrize("cell", ["yes", "Y", "TRUE", "t", "1", 1, 1.0, True, np.bool_(True)])
def test_true(cell):
    assert parse_boolean(cell) is True


@pytest.mark.parametrize("cell", ["no", "N", "False", "f", "0", 0, 0.0, False])
def test_false(cell):
    assert parse_boolean(cell) is False


@pytest.mark.parametrize("cell", ["maybe", 2, -1, 0.5, "10", b"1", [1]])
def test_broken_booleans(cell):
    with pytest.raises(ValueError, match="yes or no"):
        parse_boolean(cell)


def test_dates():
    assert parse_date("2024-02-29") == date(2024, 2, 29)
    assert not isinstance(parse_date("2024-02-29"), datetime)
    assert parse_date("2024-02-29 13:30") == parse_date("2024-02-29T13:30:00") == datetime(2024, 2, 29, 13, 30)
    zoned = parse_date("2024-02-29T13:30:00+05:00")
    assert isinstance(zoned, datetime)
    assert zoned.hour == 13
    assert parse_date(np.datetime64("2024-02-29T13:30:00.123456789")).hour == 13  # pyright: ignore
    assert parse_date(date(2024, 1, 1)) == date(2024, 1, 1)


@pytest.mark.parametrize(
    "cell", ["2023-02-29", "20240229", "29.02.2024", "2024", 1709200000, "2024-02-29Tnoon", b"2024-02-29"]
)
def test_broken_dates(cell):
    with pytest.raises(ValueError, match=r"date|range|Invalid|isoformat|day"):
        parse_date(cell)


def test_categories():
    assert parse_category(1) == parse_category(1.0) == parse_category(" 1 ") == "1"
    assert parse_category(1.5) == "1.5"
    assert parse_category("cafe\u0301") == parse_category("caf\u00e9")
    with pytest.raises(ValueError, match="category is expected, got list"):
        parse_category([1])
