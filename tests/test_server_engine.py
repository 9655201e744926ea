"""The engine's answers are those of `predict`, whatever is in a batch, and nothing is done twice."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import polymodal as pm
import tiny
import toys
from polymodal.bundle import Bundle
from polymodal.data.embedding import Embedder
from polymodal.errors import DataError, SpecError
from polymodal.modalities.image import Image
from polymodal.model import Model
from polymodal.server import engine as engine_file
from polymodal.server.engine import EMBED, SEVERAL, Engine
from polymodal.types import Masked

OUTPUTS = {"label": "classify", "price": "regress", "tags": "multilabel"}
COLUMNS = ("text", "image", "audio", "x", "colour")


def engine(bundle, **options):
    return Engine(bundle, **{"max_pixels": 10**8, "max_seconds": 600.0} | options)


def close(got, wanted, place="answer"):
    """Assert that two pieces of JSON are the same but for rounding."""
    if isinstance(wanted, dict):
        assert set(got) == set(wanted), place
        for key in wanted:
            close(got[key], wanted[key], f"{place}.{key}")
    elif isinstance(wanted, list | tuple):
        assert len(got) == len(wanted), place
        for i, pair in enumerate(zip(got, wanted, strict=True)):
            close(*pair, f"{place}[{i}]")
    elif isinstance(wanted, float):
        assert got == pytest.approx(wanted, abs=2e-4, rel=2e-4), place
    else:
        assert got == wanted, place


def mixed(rows=24, media=True):
    """Rows of which each lacks other inputs; the last one has none at all."""
    columns = tiny.columns(40, media=media)
    names = [name for name in COLUMNS if name in columns]
    made = []
    for i in range(rows):
        gone = {name for k, name in enumerate(names) if (i >> k) % 2 and i > 7}
        made.append({name: None if name in gone else columns[name][i] for name in names})
    made[0]["text"] = " ".join(["red", "iron", "bridge"] * 30)
    return [*made, dict.fromkeys(names)]


@pytest.fixture(scope="module")
def bundle():
    return tiny.fitted("text", "image", "audio", "table", outputs=OUTPUTS)


@pytest.fixture(scope="module")
def pretrained():
    """A bundle of which two inputs have a backbone."""
    inputs = {"text": {"type": "text", "backbone": "minilm"}, "image": {"type": "image", "size": 64}}
    spec = {"inputs": inputs | {"table": tiny.SCRATCH["table"]}, "outputs": {"label": "classify"}, "dim": 16}
    columns = {name: cells[:24] for name, cells in tiny.columns(40, media=True).items()}
    return pm.fit(spec | {"training": tiny.FAST}, columns, cache=False)


def agree(bundle, rows, **options):
    """Assert that all rows together, and each alone, get what `predict` says."""
    wanted, served = bundle.predict(rows, explain="inputs"), engine(bundle, **options)
    read = [served.read(row, explain=i % 2 == 0) for i, row in enumerate(rows)]
    for answers in (served.answer(read), [served.answer([row])[0] for row in read]):
        for i, answer in enumerate(answers):
            close(answer.prediction, wanted[i], f"row {i}")
            assert answer.absent == wanted.absent[i]
            if i % 2 == 0:
                close(answer.explanation, wanted.explanations[i], f"explanation {i}")
            else:
                assert answer.explanation is None


def test_every_kind_is_answered_as_by_predict_with_any_inputs_absent(bundle):
    agree(bundle, mixed())


def test_so_are_backbones_in_chunks_of_like_length_and_beside_one_another(pretrained):
    rows = [{k: v for k, v in row.items() if k != "audio"} for row in mixed()]
    with ThreadPoolExecutor(2) as pool:
        agree(pretrained, rows, beside=pool)
    agree(pretrained, rows)


def test_so_are_tokens_of_a_deep_fusion():
    columns = tiny.columns(24, media=True)
    inputs = {"text": {"type": "text", "backbone": "minilm"}, "image": tiny.SCRATCH["image"]}
    spec = {"inputs": inputs, "fusion": "attention", "outputs": {"label": "classify"}, "dim": 16}
    deep = pm.fit(spec | {"training": tiny.FAST}, columns, cache=False)
    agree(deep, [{k: row[k] for k in ("text", "image")} for row in mixed(12)])


def test_more_inputs_than_exact_explanations_take_are_sampled_as_by_predict():
    names = [f"n{i}" for i in range(9)]
    spec = toys.spec(names)
    many = Bundle(spec, Model(spec).eval(), {}, torch.device("cpu"), Embedder(spec, torch.device("cpu")))
    rows = [{name: [1.0, i] for i, name in enumerate(some)} for some in (names, names[:4])]
    served, wanted = engine(many), many.predict(rows, explain="inputs").explanations
    for row, explanation in zip(rows, wanted, strict=True):
        assert explanation["y"]["sampled"]
        close(served.answer([served.read(row, explain=True)])[0].explanation, explanation)


def test_a_row_without_any_input_is_answered_with_what_the_model_says_of_nothing(bundle):
    served = engine(bundle)
    answer = served.answer([served.read({}, explain=True)])[0]
    close(answer.prediction, bundle.predict([dict.fromkeys(COLUMNS)])[0])
    assert answer.absent == ["text", "image", "audio", "table"]
    told = answer.explanation["price"]
    assert told["inputs"] == {}
    assert told["value"] == pytest.approx(told["base"])


def test_content_that_leaves_nothing_counts_as_absent_as_by_predict(bundle):
    served, rows = engine(bundle), [{"text": "   "}, {"text": "...", "x": 1.0}]
    answers = served.answer([served.read(row) for row in rows])
    wanted = bundle.predict(rows)
    assert [answer.absent for answer in answers] == wanted.absent
    close([answer.prediction for answer in answers], list(wanted))
    assert answers[0].repairs == {"text": ["empty after cleaning"]}


def test_only_present_rows_are_embedded_a_few_of_like_length_at_a_time(pretrained, monkeypatch):
    seen = []
    embed = Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda self, name, x: (seen.append((name, x)), embed(self, name, x))[1])
    served = engine(pretrained)
    rows = [{"text": "word " * n} for n in (1, 40, 2, 41, 3, 42, 4, 43)] + [{"x": 1.0}, {"image": tiny.picture(0)}]
    served.answer([served.read(row) for row in rows])
    texts = [x for name, x in seen if name == "text"]
    assert [len(x) for x in texts] == [EMBED, EMBED]
    assert [x.mask.shape[1] for x in texts] == [4, 43]
    assert [len(x) for name, x in seen if name == "image"] == [1]
    seen.clear()
    served.answer([served.read({"text": "a"}), served.read({"text": "b"})])
    assert {name for name, _ in seen} == {"text"}  # the others are left out of the batch


def test_the_head_answers_all_rows_at_once_in_the_graph_that_agrees(bundle):
    served = engine(bundle)
    calls, decode = [], served._decode
    served._decode = lambda inputs: (calls.append(len(next(iter(inputs.values())))), decode(inputs))[1]
    served.answer([served.read(row) for row in mixed()])
    assert calls == [25]
    assert type(decode).__name__ == "Answerer"


def test_a_head_that_no_graph_can_hold_runs_in_torch_and_says_so(bundle, monkeypatch):
    def refuse(model, folder):
        raise SpecError("outputs.label: a graph must hold it.")

    monkeypatch.setattr(engine_file, "answerer", refuse)
    with pytest.warns(RuntimeWarning, match="answers in torch.*outputs.label") as told:
        served = engine(bundle)
    assert len(told) == 1
    rows = mixed(3)
    answers = served.answer([served.read(row) for row in rows])
    close([answer.prediction for answer in answers], list(bundle.predict(rows)))


def test_broken_cells_are_refused_or_told_and_their_neighbours_kept(bundle):
    served, row = engine(bundle), {"image": b"no picture", "x": "many", "colour": "red", "text": "old iron bridge"}
    with pytest.raises(DataError, match=r"^image: image must be one of"):
        served.read(row)
    read = served.read(row, strict=False)
    assert [(b["input"], b["column"]) for b in read.broken] == [("image", "image"), ("table", "x")]
    assert set(read.values) == {"text", "table"}
    answer = served.answer([read])[0]
    assert answer.absent == ["image", "audio"]
    assert answer.broken == read.broken
    close(answer.prediction, bundle.predict([row])[0])


def test_no_path_or_url_in_a_cell_is_followed(bundle, tmp_path):
    served = engine(bundle)
    (tmp_path / "a.png").write_bytes(tiny.picture(0))
    for place in (str(tmp_path / "a.png"), f"file://{tmp_path}/a.png", "http://127.0.0.1:1/a.png"):
        with pytest.raises(DataError, match="must be sent as bytes"):
            served.read({"image": place})


def test_max_pixels_refuses_an_image_before_it_is_decoded(bundle, monkeypatch):
    row, decoded = {"image": tiny.picture(0)}, []
    served, strict = engine(bundle, max_pixels=480), engine(bundle, max_pixels=479)
    assert served.read(row).values
    monkeypatch.setattr("polymodal.modalities.image.decode._load", lambda *_: decoded.append(1))
    with pytest.raises(DataError, match="at most 479 pixels, got 24 x 20 = 480"):
        strict.read(row)
    assert not decoded


def test_the_spec_may_be_stricter_than_the_server():
    part = Image(backbone="none", max_pixels=100)
    assert engine_file._bounded(part, 200) is part
    assert engine_file._bounded(part, 50).max_pixels == 50


def test_max_seconds_refuses_a_longer_sound(bundle):
    row, strict = {"audio": tiny.sound(0)}, engine(bundle, max_seconds=0.2)
    assert engine(bundle, max_seconds=0.25).read(row).values
    with pytest.raises(DataError, match=r"^audio: sound must last at most 0.2 s, got 0.25 s"):
        strict.read(row)
    read = strict.read(row, strict=False)
    assert (read.values, [b["column"] for b in read.broken]) == ({}, ["audio"])


def test_warming_answers_all_inputs_each_alone_and_several(bundle, monkeypatch):
    served, seen = engine(bundle), []
    answer = served.answer
    monkeypatch.setattr(
        served, "answer", lambda rows: (seen.append([set(row.values) for row in rows]), answer(rows))[1]
    )
    served.warm()
    names = {"text", "image", "audio", "table"}
    assert seen == [[names], *([{name}] for name in ("text", "image", "audio", "table")), [names] * SEVERAL]


def test_a_modality_without_examples_is_warmed_as_absent():
    columns = {"v": [[float(i % 2), 1.0] for i in range(20)], "x": [float(i % 2) for i in range(20)]}
    columns["y"] = [i % 2 for i in range(20)]
    inputs = {"v": "test-vectors", "table": {"type": "table", "numbers": ["x"]}}
    plain = pm.fit({"inputs": inputs, "outputs": {"y": "classify"}, "training": tiny.FAST}, columns, cache=False)
    served = engine(plain)
    served.warm()
    agree(plain, [{"v": [1.0, 1.0], "x": 0.0}, {"v": None, "x": 1.0}, {"v": [0.0, 1.0], "x": None}])


def test_an_embedder_of_choice_is_asked(pretrained):
    class Other(Embedder):
        def embed(self, name, x):
            return Masked(torch.zeros_like((y := super().embed(name, x)).values), y.mask, y.at)

    other = Other(pretrained.spec, torch.device("cpu"))
    one, two = (engine(pretrained, embedder=e) for e in (None, other))
    row = one.read({"text": "old iron bridge"})
    assert one.answer([row])[0].prediction != two.answer([row])[0].prediction


def test_what_no_idle_thread_begins_is_embedded_here(pretrained):
    hold, begun = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: (begun.set(), hold.wait(10)))
        assert begun.wait(10)
        served = engine(pretrained, beside=pool)
        row = {"text": "old iron bridge", "image": tiny.picture(3)}
        try:
            answers = served.answer([served.read(row)])
        finally:
            hold.set()
    close(answers[0].prediction, pretrained.predict([row])[0])


@pytest.mark.parametrize(("lanes", "beside"), [(1, 1), (2, 0), (3, 1)])
def test_no_thread_is_taken_beside_where_the_other_lanes_need_the_cores(pretrained, lanes, beside, monkeypatch):
    with ThreadPoolExecutor(1) as pool:
        taken, submit = [], pool.submit
        monkeypatch.setattr(pool, "submit", lambda job: taken.append(job) or submit(job))
        served = engine(pretrained, beside=pool, lanes=lanes)
        row = served.read({"text": "old iron bridge", "image": tiny.picture(3)})
        served.answer([row])
        assert len(taken) == 1  # nothing else is running
        if lanes > 1:
            with served._counted():  # as another lane does
                served.answer([row])
            assert len(taken) == 1 + beside


def test_threads_may_read_and_answer_at_once(bundle):
    served, rows = engine(bundle), mixed(16)
    wanted = bundle.predict(rows)
    with ThreadPoolExecutor(4) as pool:
        for i, answers in enumerate(pool.map(lambda row: served.answer([served.read(row)]), rows)):
            close(answers[0].prediction, wanted[i])
