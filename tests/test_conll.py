import gzip
import os
import tracemalloc
from pathlib import Path

import pytest

import polymodal as pm
from polymodal.data import files, spool
from polymodal.data.table import Table, read_conll
from polymodal.errors import DataError

DATA = Path(os.environ.get("POLYMODAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
TWO = "EU\tB-org\nrejects\tO\n\nGerman\tB-misc\ncall\tO\n"
WANTED = {"words": [["EU", "rejects"], ["German", "call"]], "tags": [["B-org", "O"], ["B-misc", "O"]]}


def written(tmp_path, text, name="t.conll"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def cells(table):
    return {name: list(table.column(name)) for name in table.columns}


@pytest.mark.parametrize(
    "text",
    [
        TWO,
        TWO.replace("\t", " "),
        TWO.replace("\t", "   "),
        TWO.replace("\t", " \t "),
        TWO.replace("\n", "\r\n"),
        TWO.rstrip("\n"),
        TWO + "\n\n\n",
        "\n\n" + TWO,
        TWO.replace("\n\n", "\n\t\n"),
        TWO.replace("\n\n", "\n  \t \n \n"),
        TWO.replace("O\n", "O  \n"),
        TWO.replace("O\n", "O\t\n"),
        TWO.replace("rejects\t", "rejects "),  # one line by blanks among lines by tabs
        "\ufeff" + TWO,
        "-DOCSTART-\tO\n\n" + TWO,
        "-DOCSTART- -X- -X- O\n\n" + TWO,
        TWO.replace("\n\n", "\n-DOCSTART-\tO\n"),
        "# sent_id = 1\n# text = EU rejects\n" + TWO,
        "# a comment\n" + TWO,
        "#begin document (bc/cctv); part 000\n" + TWO.replace("\t", " ") + "\n#end document\n",
        "# id = 7\n" + TWO.replace("\t", " "),
    ],
)
def test_two_columns_however_written(tmp_path, text):
    assert cells(Table.read(written(tmp_path, text))) == WANTED


@pytest.mark.parametrize(
    "name", ["t.iob", "t.IOB2", "t.bio", "t.bioes", "t.conll", "t.conll.gz", "t.annotated", "t.txt", "t"]
)
def test_endings_and_files_that_look_like_it(tmp_path, name):
    text = TWO.encode()
    assert cells(Table.read(written(tmp_path, gzip.compress(text) if name.endswith(".gz") else text, name))) == WANTED


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n\n",
        b"\xff\xfe\x00",
        b"a b\nc d\n",
        b"O\nO\n",
        b"EU B-org\nrejects O O\n",
        b"the cat sat on the mat\n",
        b"\x00" * 99,
    ],
)
def test_files_that_do_not(tmp_path, text):
    with pytest.raises(DataError, match="must end in one of"):
        Table.read(written(tmp_path, text, "t.dat"))


def test_hash_is_a_word_where_it_has_a_tag(tmp_path):
    for part in ("\t", " "):
        text = f"#{part}O\nNLP{part}B-x\n#1{part}O\n#{part}O\n\n#{part}O\n"
        found = cells(Table.read(written(tmp_path, text)))
        assert found["words"] == [["#", "NLP", "#1", "#"], ["#"]]
    assert cells(Table.read(written(tmp_path, "#\tO\n")))["words"] == [["#"]]


def test_words_are_kept_as_they_are(tmp_path):
    words = ["\u200b", "a\u2028b", "日本", "مرحبا", "👍🏽", "e\u0301", "\xa0", "New York", '"', "a\x0bb"]
    text = "".join(f"{word}\tO\n" for word in words)
    assert cells(Table.read(written(tmp_path, text)))["words"] == [words]


CONLL03 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O

Peter NNP B-NP B-PER
"""
CONLLU = """# sent_id = 1
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3\t# sign\tsign\tSYM\t_\t_\t1\tobj\t_\t_
3.1\tal\tal\tADP\t_\t_\t_\t_\t_\t_

# sent_id = 2
1\tmar\tmar\tNOUN\t_\t_\t0\troot\t_\t_
"""


def test_conll_2003(tmp_path):
    found = cells(Table.read(written(tmp_path, CONLL03)))
    assert list(found) == ["words", "column_2", "column_3", "tags"]
    assert found["words"] == [["EU", "rejects", "German", "call"], ["Peter"]]
    assert found["tags"] == [["B-ORG", "O", "B-MISC", "O"], ["B-PER"]]
    assert found["column_2"][0] == ["NNP", "VBZ", "JJ", "NN"]


def test_conll_u(tmp_path):
    found = cells(Table.read(written(tmp_path, CONLLU, "t.conllu")))
    assert found["words"] == [["vamos", "nos", "# sign"], ["mar"]]
    assert found["tags"] == [["VERB", "PRON", "SYM"], ["NOUN"]]
    assert found["column_3"][0][:2] == ["ir", "nosotros"]
    assert list(found)[:5] == ["column_1", "words", "column_3", "tags", "column_5"]


def test_numbered_words_of_named_entities(tmp_path):
    text = "1\tEU\tB-org\n2\trejects\tO\n\n1\tGerman\tB-misc\n2\tcall\tO\n"
    found = cells(Table.read(written(tmp_path, text)))
    assert {name: found[name] for name in WANTED} == WANTED
    numbers = "1\tCD\tO\n2\tCD\tO\n4\tCD\tO\n"
    assert cells(Table.read(written(tmp_path, numbers)))["words"] == [["1", "2", "4"]]


def test_other_layouts_by_hand(tmp_path):
    path = written(tmp_path, CONLL03, "t.eng")
    found = cells(pm.read_conll(path, tags=1)) if hasattr(pm, "read_conll") else cells(read_conll(path, tags=1))
    assert found["tags"][0] == ["NNP", "VBZ", "JJ", "NN"]
    assert list(found) == ["words", "tags", "column_3", "column_4"]
    found = cells(read_conll(path, words=-4, tags=-2))
    assert found["tags"][1] == ["B-NP"]
    found = cells(read_conll(path, words=3, tags=0))
    assert found["words"][1] == ["B-PER"]
    gz = written(tmp_path, gzip.compress(CONLLU.encode()), "u.gz")
    assert cells(read_conll(gz, words=2, tags=7))["words"] == [["ir", "nosotros", "sign"], ["mar"]]


def test_words_alone(tmp_path):
    assert cells(Table.read(written(tmp_path, "EU\nrejects\n\ncall\n"))) == {"words": [["EU", "rejects"], ["call"]]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "EU\tB-org\nrejects\n",
            r"t\.conll: line 2 must have 2 columns, as line 1 has, got 1: 'rejects'\. Mend the line",
        ),
        ("\n\nEU B-org\nrejects O O\n", r"line 4 must have 2 columns, as line 3 has, got 3: 'rejects O O'"),
        ("EU\tB-org\n\tO\n", r"line 2 must have a word in column 0"),
        ("", "must have at least one row"),
        ("# only = comments\n-DOCSTART- O\n", "must have at least one row"),
        (b"EU\tO\n\xe9\tO\n", r"line 2 must be UTF-8.*latin-1"),
    ],
)
def test_broken_files(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        Table.read(written(tmp_path, text))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"words": 2}, r"words must be a column in -2\.\.1, got 2"),
        ({"tags": -3}, r"tags must be a column in -2\.\.1, got -3"),
        ({"words": 1}, r"words and tags must be different columns, got 1 for both"),
    ],
)
def test_columns_that_are_not_there(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        read_conll(written(tmp_path, TWO), **columns)


def test_what_cannot_be_read_by_hand(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_conll(tmp_path / "none.conll")
    with pytest.raises(DataError, match="must have at least one sentence"):
        read_conll(written(tmp_path, "\n"))
    with pytest.raises(DataError, match="must be readable"):
        read_conll(written(tmp_path, "no gzip", "t.gz"))


def test_large_and_small_read_alike(tmp_path, monkeypatch):
    path = written(tmp_path, "\n".join(f"w{i}\tO\n" * (i % 7 + 1) for i in range(2000)))
    small = cells(Table.read(path))
    monkeypatch.setattr(spool, "SMALL", 0)
    monkeypatch.setattr("polymodal.data.conll.BATCH", 1000)
    table = Table.read(path)
    assert table.column("words")[1999] == small["words"][1999]
    assert cells(table) == small
    assert len(table) == 2000


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "SMALL", 0)
    monkeypatch.setattr("polymodal.data.conll.BATCH", 20_000)
    path = written(tmp_path, ("word\tO\n" * 19 + "\n") * 4000)
    tracemalloc.start()
    try:
        table = Table.read(path)
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
    assert len(table) == 4000


def test_it_is_one_of_the_readers():
    assert {".conll", ".conllu", ".iob", ".bio", ".iob2"} <= set(files._READERS)


@pytest.mark.skipif(not (DATA / "wnut17").is_dir(), reason="the data set is not here")
@pytest.mark.parametrize(
    ("name", "sentences"),
    [("wnut17train.conll", 3394), ("emerging.dev.conll", 1009), ("emerging.test.annotated", 1287)],
)
def test_wnut(name, sentences):
    table = Table.read(DATA / "wnut17" / name)
    assert len(table) == sentences
    assert table.columns == ("words", "tags")
    assert all(len(a) == len(b) for a, b in zip(table.column("words"), table.column("tags"), strict=True))
