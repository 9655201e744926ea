"""Rows as vectors: by a bundle that matches its inputs, and by one modality's own backbone."""

import json
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

import polymodal as pm
import tiny
from polymodal.data.shelf import rounded
from polymodal.embedding.embed import space
from polymodal.embedding.single import Single
from polymodal.nn.weights import PACKAGED

MATCH = {"pairs": {"type": "match", "width": 8, "matryoshka": [4]}}
TEXTS = [
    "a red apple",
    "Café — naïve, ‘quoted’",
    "两只船 in the harbour",
    "x",
    "عربي من اليمين",
    "😀 emoji 😀",
    "numbers 1,234.56 and #hashtags @names http://a.b/c",
    " ".join(f"word{i}" for i in range(80)),
]

with_minilm = pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="needs the packaged MiniLM")


@pytest.fixture(scope="module")
def rows():
    return {name: cells[:12] for name, cells in tiny.columns(40, media=True).items() if name in ("text", "image", "x")}


@pytest.fixture(scope="module")
def bundle():
    return tiny.fitted("text", "image", outputs=MATCH)


def cell(rows, i, **without):
    return {name: None if name in without else cells[i] for name, cells in rows.items()}


def test_vectors_have_length_1_and_are_the_tasks_own(bundle, rows):
    found = pm.embed(bundle, rows)
    assert found.vectors.shape == (12, 8)
    assert found.vectors.dtype == np.float32
    assert found.present.all()
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    assert len(found) == 12
    similar = [row["pairs"]["similarity"] for row in bundle.predict(rows)]
    sides = [pm.embed(bundle, rows, inputs=[name]).vectors.astype(float) for name in ("text", "image")]
    np.testing.assert_allclose((sides[0] * sides[1]).sum(1), similar, atol=1e-5)
    whole = sides[0] + sides[1]
    np.testing.assert_allclose(found.vectors, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)


def test_inputs_limit_what_is_looked_at(bundle, rows):
    image = pm.embed(bundle, rows, inputs=["image"])
    np.testing.assert_array_equal(image.vectors, pm.embed(bundle, {"image": rows["image"]}).vectors)
    assert list(image.report.inputs) == ["image"]
    assert not image.warnings
    with pytest.raises(pm.SpecError, match=r"got 'imgae'\. Did you mean 'image'\?"):
        pm.embed(bundle, rows, inputs=["imgae"])
    with pytest.raises(pm.SpecError, match="one or more"):
        pm.embed(bundle, rows, inputs=[])


def test_width_cuts_the_vectors_as_the_task_does(bundle, rows):
    short = pm.embed(bundle, rows, inputs=["text"], width=4).vectors
    whole = pm.embed(bundle, rows, inputs=["text"]).vectors[:, :4]
    np.testing.assert_allclose(short, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)
    for wrong in (1, 9):
        with pytest.raises(pm.SpecError, match=f"width must be 2 to 8 for this model, got {wrong}"):
            pm.embed(bundle, rows, width=wrong)


def test_rows_without_any_input_have_no_vector_and_are_told(bundle, rows):
    table = [cell(rows, 0), cell(rows, 1, text=True, image=True), cell(rows, 2, image=True)]
    found = pm.embed(bundle, table)
    assert found.present.tolist() == [True, False, True]
    assert np.isnan(found.vectors[1]).all()
    assert "1 of 3 rows have no vector, the first is row 1" in found.warnings
    alone = pm.embed(bundle, [cell(rows, 2, image=True)])
    np.testing.assert_allclose(found.vectors[2], alone.vectors[0], atol=1e-6)


def test_broken_cells_are_absent_or_refused(bundle, rows):
    table = [cell(rows, 0), {"text": "red apple", "image": b"no picture"}]
    found = pm.embed(bundle, table)
    assert found.present.all()
    assert "image: 1 broken" in found.warnings[0]
    with pytest.raises(pm.DataError, match="row 1, column 'image'"):
        pm.embed(bundle, table, strict=True)
    with pytest.raises(pm.DataError, match=r"at least one of the columns \['image', 'text'\]"):
        pm.embed(bundle, {"x": [1.0]})


def test_rows_are_numbered_through_the_chunks(bundle):
    table = {"text": ["red apple"] * 300 + [None], "image": [None] * 299 + [b"?", None]}
    found = pm.embed(bundle, table)
    assert [cell.row for cell in found.report.quarantined] == [299]
    assert np.flatnonzero(~found.present).tolist() == [300]


def test_a_digest_names_what_vectors_depend_on(bundle, tmp_path):
    bundle.save(tmp_path / "model")
    assert space(tmp_path / "model").digest == space(bundle).digest
    assert space(tmp_path / "model").origin == str(tmp_path / "model")
    other = tiny.fitted("text", "image", outputs=MATCH, seed=1)
    assert space(other).digest != space(bundle).digest
    own = space(bundle)
    assert space(own) is own


def test_what_cannot_embed_says_so(bundle, tmp_path):
    plain = tiny.fitted("text")
    with pytest.raises(pm.SpecError, match="must have an output of type match"):
        pm.embed(plain, {"text": ["a"]})
    with pytest.raises(pm.SpecError, match=r"task must be one of \['pairs'\], got 'pair'\. Did you mean 'pairs'\?"):
        pm.embed(bundle, {"text": ["a"]}, task="pair")
    with pytest.raises(pm.BundleError, match=r"got 'txet'\. Did you mean 'text'\?"):
        pm.embed("txet", ["a"])
    with pytest.raises(pm.SpecError, match="must have a pretrained backbone"):
        pm.embed({"type": "text", "backbone": "none"}, ["a"])
    with pytest.raises(pm.SpecError, match="must have a pretrained backbone"):
        pm.embed({"type": "table", "numbers": ["a"]}, [{"a": 1}])
    with pytest.raises(pm.SpecError, match="widwno"):
        pm.embed({"type": "text", "widwno": 3}, ["a"])
    with pytest.raises(pm.BundleError, match="must be a bundle's folder"):
        pm.embed(tmp_path / "none", ["a"])
    with pytest.raises(pm.SpecError, match="task must not be given with a modality"):
        pm.embed("text", ["a"], task="pairs")


@pytest.mark.parametrize("ending", ["npz", "safetensors", "parquet", "csv", "jsonl"])
def test_vectors_are_written_whole(ending, tmp_path):
    vectors = np.array([[0.6, 0.8], [np.nan, np.nan]], np.float32)
    report = pm.embed(tiny_space(), {"text": ["a"]}).report
    found = pm.Embeddings(vectors, np.array([True, False]), report)
    path = found.save(tmp_path / f"v.{ending}")
    if ending in ("npz", "safetensors"):
        read = dict(np.load(path)) if ending == "npz" else load_file(path)
        np.testing.assert_array_equal(read["vectors"], vectors)
        assert read["present"].tolist() == [1, 0]
        return
    if ending == "parquet":
        rows = pq.read_table(path).column("vector").to_pylist()
    elif ending == "jsonl":
        rows = [json.loads(line)["vector"] for line in path.read_text().splitlines()]
    else:
        cells = pm.Table.read(path).column("vector")
        rows = [None if text is None else json.loads(text) for text in cells]
        assert list(pm.Table.read(path).column("row")) == [0, 1]
    np.testing.assert_array_equal(np.array(rows[0], np.float32), vectors[0])
    assert rows[1] is None


def test_a_file_that_cannot_be_written_is_refused_first(tmp_path):
    with pytest.raises(pm.DataError, match=r"must end in one of .*npz.*, got '\.xlsx'"):
        pm.Embeddings.check_file(tmp_path / "v.xlsx")
    with pytest.raises(pm.DataError, match="folder that exists"):
        pm.Embeddings.check_file(tmp_path / "no" / "v.npz")


def tiny_space():
    return space(tiny.fitted("text", "table", outputs={"pairs": {"type": "match", "width": 2}}))


@with_minilm
@pytest.mark.slow
def test_a_text_is_embedded_as_by_sentence_transformers():
    pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sentence_transformers import SentenceTransformer

        path = PACKAGED["minilm"].locate()
        assert path is not None
        theirs = SentenceTransformer(str(path.parent), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(pm.embed("text", TEXTS).vectors, theirs, atol=1e-5)


@with_minilm
def test_a_bare_text_is_not_rounded_sorted_back_and_split_into_batches():
    whole = Single.of("text").embed({"text": TEXTS})
    assert whole.vectors.shape == (8, 384)
    some = Single.of("text", batch=3).embed({"text": TEXTS})
    np.testing.assert_allclose(some.vectors, whole.vectors, atol=1e-5)
    half = rounded(pm.Masked(*(tensor(whole.vectors))))
    assert np.abs(half.values[0].numpy() - whole.vectors).max() > 1e-5
    texts = pm.embed({"type": "text", "column": "words"}, {"words": ["a red apple", None, ""]})
    assert texts.present.tolist() == [True, False, False]
    np.testing.assert_allclose(texts.vectors[0], whole.vectors[0], atol=1e-5)


@with_minilm
def test_windows_are_as_long_as_published_unless_they_are_set():
    own, set_ = space("text"), space({"type": "text", "window": 128})
    assert (own.parts["text"].window, set_.parts["text"].window) == (256, 128)
    assert own.digest != set_.digest
    assert space({"type": "text", "window": 256}).digest == space(own.origin).digest == own.digest


@pytest.mark.skipif(PACKAGED["efficientnet-lite0"].locate() is None, reason="needs the packaged EfficientNet")
def test_a_bare_image(rows):
    found = pm.embed("image", rows["image"][:3])
    assert found.vectors.shape == (3, 1280)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    one = pm.embed("image", rows["image"][1:2])
    np.testing.assert_allclose(one.vectors[0], found.vectors[1], atol=1e-5)


@pytest.mark.skipif(PACKAGED["speech-embedding"].locate() is None, reason="needs the packaged speech embedding")
def test_a_bare_sound():
    sounds = [tiny.sound(i) for i in range(2)]
    found = pm.embed("audio", sounds)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(pm.embed("audio", sounds[1:]).vectors[0], found.vectors[1], atol=1e-5)


def tensor(vectors):
    import torch

    x = torch.from_numpy(vectors)[None]
    return x, torch.ones(x.shape[:2], dtype=torch.bool)
