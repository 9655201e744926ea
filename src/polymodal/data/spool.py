"""What the readers of table files share: text as lines, columns that outgrow memory, plain Arrow types."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from polymodal.data.cells import is_url
from polymodal.errors import DataError

Opener = Callable[[], AbstractContextManager[BinaryIO]]

SMALL = 8 << 20
"""Bytes up to which a table is simply held in memory."""

BATCH = 8 << 20
"""Bytes of rows in flight while a large one is converted."""


def spool(schema: pa.Schema, batches: Iterable[pa.RecordBatch], small: bool) -> pa.Table:
    """Hold batches in memory if small, else in an unlinked temporary file that the operating system maps."""
    if small:
        return pa.Table.from_batches(list(batches), schema)
    with tempfile.NamedTemporaryFile(prefix="polymodal-", suffix=".arrow", delete=False) as file:
        try:
            with pa.ipc.new_file(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            file.flush()
            table = pa.ipc.open_file(pa.memory_map(file.name)).read_all()
        except OSError as error:
            if error.errno is None:
                raise
            raise DataError(
                f"{file.name} must hold a copy of the table: {error}. Set TMPDIR to a folder with space."
            ) from None
        finally:
            with suppress(OSError):  # Windows keeps an open file
                os.unlink(file.name)
    return table


def is_small(place: str | Path) -> bool:
    """Whether a local file of text has, unpacked, some `SMALL` bytes at most."""
    limit = SMALL // 8 if str(place).endswith(".gz") else SMALL
    return not is_url(str(place)) and os.path.getsize(place) < limit


def plain(kind: pa.DataType) -> pa.DataType:
    """The nearest type whose values are plain Python objects."""
    if isinstance(kind, pa.DictionaryType):
        return kind.value_type
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind):
        return pa.duration("us")
    if pa.types.is_time64(kind):
        return pa.time64("us")
    return pa.float64() if pa.types.is_decimal(kind) else kind


def plain_table(table: pa.Table) -> pa.Table:
    """Cast the columns whose type is not plain."""
    for i, field in enumerate(table.schema):
        if plain(field.type) != field.type:
            table = table.set_column(i, field.name, table.column(i).cast(plain(field.type), safe=False))
    return table


def text_lines(opener: Opener, place: str | Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line of a file.

    Raises:
        DataError: a line is not UTF-8.
    """
    with opener() as raw:
        for number, line in enumerate(raw, 1):
            yield number, decode(line, number, place)


def check_encoding(opener: Opener, place: str | Path) -> None:
    """Raise a DataError that tells the first line that is not UTF-8, if there is one."""
    for _ in text_lines(opener, place):
        pass


def decode(line: bytes, number: int, place: str | Path) -> str:
    """Decode a line of UTF-8."""
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        guess = "utf-16" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin-1"
        raise DataError(
            f"{place}: line {number} must be UTF-8, got byte 0x{line[error.start]:02x} at position {error.start}. "
            f"It may be {guess}: convert it with iconv -f {guess} -t utf-8."
        ) from None


def check_names(names: Iterable[str], source: str) -> None:
    """Reject repeated column names.

    Raises:
        DataError: a name repeats.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{source}: column names must differ, got {name!r} twice. Rename one of them.")
        seen.add(name)
