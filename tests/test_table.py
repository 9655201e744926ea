import gzip
import json
from datetime import datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from polymodal.data import files, spool
from polymodal.data.table import Column, Table
from polymodal.errors import DataError


def csv(tmp_path, text, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def cells(table):
    return {name: list(table.column(name)) for name in table.columns}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (["1", "-2", "0"], [1, -2, 0]),
        (["1", "2.50", ".5", "1e3", ""], [1.0, 2.5, 0.5, 1000.0, None]),
        (["true", "False", ""], [True, False, None]),
        (["01", "02", "10"], ["01", "02", "10"]),
        (["+49", "12"], ["+49", "12"]),
        (["12345678901234567890", "1"], ["12345678901234567890", "1"]),
        (["1", "abc", "inf"], ["1", "abc", "inf"]),
        (["1.5", "nan"], ["1.5", "nan"]),
        (["NA", "None", "null", "nan", "", "N/A"], ["NA", "None", "null", "nan", None, "N/A"]),
        (["0x1F", "2"], ["0x1F", "2"]),
        (["2024-01-02", ""], ["2024-01-02", None]),
        ([" 1", "2"], [" 1", "2"]),
        (['"a, ""b""\nc"', '""'], ['a, "b"\nc', None]),
    ],
)
def test_csv_cells_are_what_the_file_says(column, values, tmp_path):
    text = "id,x\n" + "".join(f"r,{cell}\n" for cell in column)
    got = list(Table.read(csv(tmp_path, text)).column("x"))
    assert got == values
    assert [type(v) for v in got] == [type(v) for v in values]


def test_types_are_those_of_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BATCH", 1000)
    text = "x\n" + "1\n" * 5000 + "007\n"
    assert Table.read(csv(tmp_path, text)).column("x")[-1] == "007"
    assert Table.read(csv(tmp_path, text)).column("x")[0] == "1"


@pytest.mark.parametrize(("name", "d"), [("t.tsv", "\t"), ("t.csv", ";"), ("t.csv", ","), ("t.csv.gz", ",")])
def test_delimiters_byte_order_mark_and_gzip(name, d, tmp_path):
    data = f"\ufeffa{d}{d}b\n1{d}x{d}é\n".encode()
    table = Table.read(csv(tmp_path, gzip.compress(data) if name.endswith("gz") else data, name))
    assert cells(table) == {"a": [1], "column_2": ["x"], "b": ["é"]}
    assert table.base == tmp_path
    assert table.source == str(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "at least one column"),
        ("a,b\n", "at least one row"),
        ("a,a\n1,2\n", "'a' twice"),
        ("a,b\n1,2\n3,4,5\n", r"row 3 \(the header is row 1\) must have 2 cells, got 3"),
        ("a,b\n1,2\n3,é\n".encode("latin-1"), "line 3 must be UTF-8, got byte 0xe9 at position 2.*latin-1"),
        ("é,b\n".encode("latin-1"), "line 1 must be UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "utf-16"),
    ],
)
def test_bad_csv(text, words, tmp_path):
    with pytest.raises(DataError, match=words):
        Table.read(csv(tmp_path, text))


def test_bad_places(tmp_path):
    csv(tmp_path, "a\n1\n", "train.csv")
    with pytest.raises(DataError, match=r"does not exist\. Did you mean 'train.csv'"):
        Table.read(tmp_path / "trian.csv")
    with pytest.raises(DataError, match="does not exist"):
        Table.read(str(tmp_path / "no" / "train.csv"))
    with pytest.raises(DataError, match="must end in one of"):
        Table.read(csv(tmp_path, "x", "t.xlsx"))
    with pytest.raises(DataError, match=r"readable as .parquet"):
        Table.read(csv(tmp_path, "no parquet at all", "t.parquet"))
    with pytest.raises(DataError, match=r"readable as .csv"):
        Table.read(csv(tmp_path, "no gzip", "t.csv.gz"))
    with pytest.raises(DataError, match="pip install s3fs"):
        Table.read("s3://bucket/t.csv")
    with pytest.raises(DataError, match="a table must be a path"):
        Table.read(3)


def test_json_lines_give_back_any_value(tmp_path):
    rows = [
        {"a": 1, "n": {"x": [1, "two", None]}, "m": "1"},
        {"a": "one", "late": True, "m": None},
        {"a": 1.5, "m": [1]},
    ]
    for name in ("t.jsonl", "t.ndjson", "t.jsonl.gz"):
        data = "\n\n".join(json.dumps(row) for row in rows).encode()
        table = Table.read(csv(tmp_path, gzip.compress(data) if name.endswith("gz") else data, name))
        assert table.columns == ("a", "n", "m", "late")
        assert [table.rows(i) for i in range(3)] == [{k: row.get(k) for k in table.columns} for row in rows]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}\n[1]\n', "line 2 must be one JSON object, got"),
        ('{"a": 1}\n{"a"\n', "line 2 must be one JSON object: "),
        ('{"a": "é"}\n'.encode("latin-1"), "line 1 must be UTF-8"),
        ("", "at least one column"),
        ("{}\n", "at least one column"),
    ],
)
def test_bad_json_lines(text, words, tmp_path):
    with pytest.raises(DataError, match=words):
        Table.read(csv(tmp_path, text, "t.jsonl"))


def test_parquet_values_are_plain(tmp_path):
    table = pa.table(
        {
            "kind": pa.array(["a", "b", None]).dictionary_encode(),
            "when": pa.array([1_500_000_000_000_000_001, None, 0], pa.timestamp("ns")),
            "blob": [b"x", None, b"\0"],
            "nested": [{"a": [1, 2]}, None, {"a": None}],
            "price": pa.array([1, 2, None]).cast(pa.decimal128(38, 2)),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    for source in (tmp_path / "t.parquet", table, table.to_batches()[0]):
        got = cells(Table.read(source))
        assert got["kind"] == ["a", "b", None]
        assert got["when"] == [datetime(2017, 7, 14, 2, 40), None, datetime(1970, 1, 1)]
        assert got["blob"] == [b"x", None, b"\0"]
        assert got["nested"] == [{"a": [1, 2]}, None, {"a": None}]
        assert got["price"] == [1.0, 2.0, None]


def _parquet_of_bytes(path, rows=500, size=100_000):
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(path, pa.schema({"i": pa.int64(), "b": pa.binary()}), compression="none") as writer:
        for start in range(0, rows, 50):
            blobs = [rng.bytes(size) for _ in range(50)]
            writer.write_table(pa.table({"i": list(range(start, start + 50)), "b": pa.array(blobs, pa.binary())}))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_memory_does_not_grow_with_the_media(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BATCH", 2 << 20)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(spool.tempfile, "tempdir", str(tmp_path / "tmp"))
    path, n = tmp_path / f"t.{kind}", 500
    if kind == "parquet":
        _parquet_of_bytes(path, n)
    else:
        body = "A" * 50_000
        line = '{{"i": {0}, "b": "{1}"}}\n' if kind == "jsonl" else "{0},{1}\n"
        path.write_text(("" if kind == "jsonl" else "i,b\n") + "".join(line.format(i, body) for i in range(n)))
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    peak = 0
    real = files.plain_table if kind == "parquet" else files.is_small

    def watch(*args):
        nonlocal peak
        peak = max(peak, pool.bytes_allocated() - before)
        return real(*args)

    monkeypatch.setattr(files, real.__name__, watch)
    table = Table.read(path)
    total = 0
    for i, blob in enumerate(table.column("b")):
        total += len(blob)
        if i % 100 == 0:
            peak = max(peak, pool.bytes_allocated() - before)
    assert total == n * (100_000 if kind == "parquet" else 50_000)
    assert peak < 12 << 20
    assert list(table.column("i")) == list(range(n))
    assert not list((tmp_path / "tmp").iterdir())


def test_large_and_small_read_alike(tmp_path, monkeypatch):
    path = csv(tmp_path, "a,b\n" + "".join(f"{i},{'x' * (i % 50)}\n" for i in range(3000)))
    small = cells(Table.read(path))
    monkeypatch.setattr(spool, "SMALL", 0)
    monkeypatch.setattr(files, "BATCH", 4000)
    large = Table.read(path)
    assert cells(large) == small
    assert [large.column("b")[i] for i in (2999, 0, 1500, -1)] == [small["b"][i] for i in (2999, 0, 1500, -1)]


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool, "SMALL", 0)
    monkeypatch.setattr(spool.pa.ipc, "new_file", full)
    with pytest.raises(DataError, match=r"No space left on device.*TMPDIR"):
        Table.read(csv(tmp_path, "a\n1\n"))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames(library):
    data = {"n": [1.5, None, 2.0], "s": ["a", None, "c"], "y": [1, 2, 3]}
    frame = pd.DataFrame(data, index=[5, 6, 7]) if library == "pandas" else pl.DataFrame(data)
    assert cells(Table.read(frame)) == data
    assert cells(Table.read({name: frame[name] for name in data})) == data


def test_frames_of_objects_and_categories():
    picture = object()
    frame = pd.DataFrame({"im": [picture, None], "mix": ["a", 1], "c": pd.Categorical(["u", None]), 3: [1, 2]})
    table = Table.read(frame)
    assert cells(table) == {"im": [picture, None], "mix": ["a", 1], "c": ["u", None], "3": [1, 2]}
    with pytest.raises(DataError, match="'a' twice"):
        Table.read(pd.DataFrame([[1, 2]], columns=["a", "a"]))


def test_columns_and_rows_in_memory():
    table = Table.read({"a": np.array([1, 2]), "b": [np.float32(0.5), None], "p": np.zeros((2, 3, 3), np.uint8)})
    assert list(table.column("a")) == [1, 2]
    assert [type(v) for v in table.column("b")] == [float, type(None)]
    assert table.column("p")[0].shape == (3, 3)
    rows = Table.read([{"a": 1}, {"b": 2}])
    assert cells(rows) == {"a": [1, None], "b": [None, 2]}
    assert Table.read(rows) is rows


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, "at least one column"),
        ({"a": []}, "at least one row"),
        ([], "at least one row"),
        ({"a": [1], "b": [1, 2]}, r"one length, got \{'a': 1, 'b': 2\}"),
        ({"a": "text"}, "must be a sequence of cells, got str"),
        ([{"a": 1}, 2], "row 1 must be a mapping"),
        (pa.table([[1], [2]], names=["a", "a"]), "'a' twice"),
    ],
)
def test_bad_tables_in_memory(source, words):
    with pytest.raises(DataError, match=words):
        Table.read(source)


def test_views(tmp_path):
    table = Table.read(csv(tmp_path, "a,b\n" + "".join(f"{i},t{i}\n" for i in range(10))))
    view = table.select([7, 3, 3]).with_column("c", ["x", "y", "z"]).select(np.array([2, 0]))
    assert cells(view) == {"a": [3, 7], "b": ["t3", "t7"], "c": ["z", "x"]}
    assert view.rows(1) == {"a": 7, "b": "t7", "c": "x"}
    assert (view.base, view.source) == (table.base, table.source)
    assert list(table.select(np.arange(10) % 2 == 0).column("a")) == [0, 2, 4, 6, 8]
    assert list(table.head(3).column("a")) == [0, 1, 2]
    assert table.column("a")[2:8:3] == [2, 5]
    assert table.column("a")[-1] == 9
    assert cells(table.with_column("a", range(10)))["a"] == list(range(10))
    assert "a" in table
    with pytest.raises(IndexError):
        table.column("a")[10]
    with pytest.raises(IndexError):
        table.select([10])
    with pytest.raises(DataError, match="one length"):
        table.with_column("c", [1])
    with pytest.raises(DataError, match=r"must have a column 'bb', got \['a', 'b'\]. Did you mean 'b'"):
        table.column("bb")


def test_selecting_copies_no_cells():
    column = Column(pa.chunked_array([[b"x" * 1000] * 100] * 10))
    before = pa.total_allocated_bytes()
    view = Table({"a": column}).select(np.arange(999, -1, -1))
    assert len(view.column("a")) == 1000
    assert pa.total_allocated_bytes() == before


def test_a_folder_per_class(tmp_path):
    for name in ("cat/1.jpg", "cat/2.PNG", "dog/1.jpg", "dog/.hidden", ".git/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    table = Table.read(str(tmp_path))
    assert cells(table) == {"image": ["cat/1.jpg", "cat/2.PNG", "dog/1.jpg"], "label": ["cat", "cat", "dog"]}
    assert table.base == tmp_path
    (tmp_path / "dog" / "notes.txt").write_bytes(b"")
    with pytest.warns(UserWarning, match="left out 1 files that are no media, as dog/notes.txt"):
        Table.read(tmp_path)
    (tmp_path / "dog" / "1.wav").write_bytes(b"")
    with pytest.raises(DataError, match="got both"):
        Table.read(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="got none"):
        Table.read(tmp_path / "empty")


def test_remote_tables(tmp_path):
    import fsspec

    fsspec.filesystem("memory").pipe("/box/t.csv", b"a\n1\n")
    fsspec.filesystem("memory").pipe("/box/t.jsonl.gz", gzip.compress(b'{"a": 1}\n'))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    fsspec.filesystem("memory").pipe("/box/t.parquet", (tmp_path / "t.parquet").read_bytes())
    for name in ("t.csv", "t.jsonl.gz", "t.parquet"):
        table = Table.read(f"memory://box/{name}")
        assert cells(table) == {"a": [1]}
        assert table.base == "memory://box"
    with pytest.raises(DataError, match="does not exist"):
        Table.read("memory://box/none.csv")
    assert cells(Table.read((tmp_path / "t.parquet").as_uri())) == {"a": [1]}
