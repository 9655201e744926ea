"""An index behind a server: found as in Python, guarded as a prediction, never of another model."""

import asyncio
import base64
import io
import json
import shutil
import threading
import time

import pytest
from PIL import Image

import polymodal as pm
import tiny
from hosted import ask, multipart, running
from polymodal.server.app import create_app
from polymodal.server.models import Models
from polymodal.server.settings import Settings
from stage import Stage

MATCH = {"pairs": {"type": "match", "width": 8}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("find")
    table = {name: cells[:20] for name, cells in tiny.columns(40, media=True).items() if name in ("text", "image")}
    tiny.fitted("text", "image", "table", outputs={"pairs": {**MATCH["pairs"], "sides": ["text", "image"]}}).save(
        place / "model"
    )
    tiny.fitted("text", "image", outputs=MATCH, seed=1).save(place / "other")
    pm.Index.create(place / "model", {**table, "name": [f"n{i}" for i in range(20)]}).save(place / "index")
    return place


def settings(place, *models, **more):
    return Settings.make(*(place / name for name in models or ("model",)), index=place / "index", device="cpu", **more)


@pytest.fixture(scope="module")
def place(folders):
    app = create_app(settings(folders, "other", "model", max_rows=5, max_pixels=1000))
    with running(app) as place:
        yield place


@pytest.fixture(scope="module")
def index(folders):
    return pm.Index.load(folders / "index")


def same(items, hits):
    assert [item["id"] for item in items] == [hit.id for hit in hits]
    assert [item["score"] for item in items] == pytest.approx([hit.score for hit in hits], abs=1e-4)
    assert [item["columns"] for item in items] == [hit.columns for hit in hits]


def image(seed):
    return base64.b64encode(tiny.picture(seed)).decode()


def test_items_are_those_that_python_finds(place, index):
    rows = [{"text": "red apple"}, {"image": image(3)}, {"text": "grey", "image": image(4)}]
    reply = ask(place, "/v1/find", {"inputs": rows, "count": 3})
    assert reply.status == 200
    assert reply.json["model"] == "model"
    for items, row in zip(reply.json["items"], rows, strict=True):
        query = row | ({"image": base64.b64decode(row["image"])} if "image" in row else {})
        same(items, index.find(query, 3)[0])
    assert reply.json["absent"] == [["image"], ["text"], []]
    assert reply.json["broken"] == [[], [], []]
    one = ask(place, "/v1/find?model=model", {"inputs": rows[0]})
    assert len(one.json["items"][0]) == 10


def test_a_form_finds_too(place, index):
    body, kind = multipart(("image", tiny.picture(3), "x.png", "image/png"), ("count", b"2", None, None))
    reply = ask(place, "/v1/find", body, Content_Type=kind)
    assert reply.status == 200
    same(reply.json["items"][0], index.find({"image": tiny.picture(3)}, 2)[0])


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"inputs": {}}, 422, "inputs[0] must have one or more of ['text', 'image']"),
        ({"inputs": [{"text": "a"}, {"text": None}]}, 422, "inputs[1] must have one or more"),
        ({"inputs": {"txt": "a"}}, 422, "Did you mean 'text'?"),
        ({"inputs": {"x": 1.0}}, 422, "must have columns of ['image', 'text']"),
        ({"inputs": {"image": base64.b64encode(b"no picture").decode()}}, 422, "inputs[0].image"),
        ({"inputs": {"text": "a"}, "count": 0}, 422, "count must be a whole number from 1 to 1000, got 0"),
        ({"inputs": {"text": "a"}, "count": True}, 422, "count must be a whole number"),
        ({"inputs": {"text": "a"}, "count": "3"}, 422, "count must be a whole number"),
        ({"inputs": {"text": "a"}, "explain": True}, 422, "The body must have keys of ['inputs', 'count', 'strict']"),
        ({"inputs": [{"text": "a"}] * 6}, 413, "at most 5 rows"),
    ],
)
def test_what_is_wrong_is_named(place, body, status, said):
    reply = ask(place, "/v1/find", body)
    assert (reply.status, said in reply.json["error"]["message"]) == (status, True), reply.json


def test_limits_of_cells_hold(place):
    sink = io.BytesIO()
    Image.new("RGB", (100, 100)).save(sink, "PNG")
    reply = ask(place, "/v1/find", {"inputs": {"image": base64.b64encode(sink.getvalue()).decode()}})
    assert reply.status == 422
    assert "pixels" in reply.json["error"]["message"]


def test_a_broken_cell_may_be_absent(place):
    row = {"text": "red", "image": base64.b64encode(b"no picture").decode()}
    reply = ask(place, "/v1/find", {"inputs": row, "strict": False})
    assert reply.status == 200
    assert reply.json["absent"] == [["image"]]
    assert reply.json["broken"][0][0]["column"] == "image"


def test_only_the_indexs_model_can_be_named(place):
    reply = ask(place, "/v1/find?model=other", {"inputs": {"text": "a"}})
    assert (reply.status, reply.json["error"]["message"]) == (
        404, "The index is of the model 'model', got 'other'. Leave the key out."
    )  # fmt: skip
    assert ask(place, "/v1/find?modle=model", {"inputs": {"text": "a"}}).status == 422


def test_a_prediction_has_no_count(place):
    assert ask(place, "/v1/predict", {"inputs": {"text": "a"}, "count": 3}).status == 422


def test_it_is_counted_and_described(place):
    ask(place, "/v1/find", {"inputs": {"text": "red"}, "count": 2})
    counted = ask(place, "/metrics").body.decode()
    assert "/v1/find" in counted
    document = ask(place, "/openapi.json").json
    operation = document["paths"]["/v1/find"]["post"]
    assert operation["parameters"][0]["schema"]["enum"] == ["model"]
    schema = document["components"]["schemas"]["Query"]
    assert set(schema["properties"]) == {"inputs", "count", "strict"}
    assert set(schema["properties"]["inputs"]["oneOf"][0]["properties"]) == {"text", "image"}


def test_without_an_index_there_is_nothing_to_find():
    reply = Stage().ask("POST", "/v1/find", {"inputs": {}})
    assert reply.status == 404
    assert "--index INDEX" in reply.json["error"]["message"]


def test_a_token_is_asked_for(folders):
    with running(create_app(settings(folders, token="a-long-secret"))) as place:
        assert ask(place, "/v1/find", {"inputs": {"text": "a"}}).status == 401
        assert ask(place, "/v1/find", {"inputs": {"text": "a"}}, authorization="Bearer a-long-secret").status == 200


def test_another_models_index_does_not_start(folders):
    models = Models(settings(folders, "other"))
    with pytest.raises(pm.BundleError, match="must be an index that one of the models"):
        asyncio.run(models.start())
    with pytest.raises(pm.BundleError, match="must be an index's folder"):
        asyncio.run(Models(Settings.make(folders / "model", index=folders / "none", device="cpu")).start())


def wait_for(check):
    until = time.monotonic() + 20
    while not check():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_changed_index_is_read_again_and_a_damaged_one_is_not(folders, tmp_path):
    shutil.copytree(folders / "model", tmp_path / "model")
    shutil.copytree(folders / "index", tmp_path / "index")
    with running(create_app(settings(tmp_path, watch=0.05))) as place:
        query = {"inputs": {"text": "red"}, "count": 100}

        def count():
            return len(ask(place, "/v1/find", query).json["items"][0])

        assert count() == 20
        made = pm.Index.load(tmp_path / "index")
        made.remove(["3", "4"])
        made.save(tmp_path / "index")
        assert count() == 18
        note = tmp_path / "index" / "index.json"
        whole = note.read_text()
        note.write_text("{")
        assert count() == 18
        note.write_text(json.dumps(json.loads(whole) | {"items": 3}))
        assert count() == 18
        shutil.rmtree(tmp_path / "index")
        assert count() == 18
        shutil.copytree(folders / "other", tmp_path / "new")
        old = ask(place, "/v1/models").json["models"][0]["version"]
        shutil.copytree(tmp_path / "new", tmp_path / "model", dirs_exist_ok=True)
        wait_for(lambda: ask(place, "/v1/models").json["models"][0]["version"] != old)
        reply = ask(place, "/v1/find", query)
        assert reply.status == 503
        assert "another version of the model" in reply.json["error"]["message"]
        pm.Index.create(tmp_path / "model", {"text": ["red", "grey"]}).save(tmp_path / "index")
        assert count() == 2


def test_too_many_rows_are_turned_away(folders, monkeypatch):
    async def go():
        models = Models(settings(folders, queue=2))
        await models.start()
        finder, served, gate = models.finder, models.find("model"), threading.Event()
        assert finder is not None
        monkeypatch.setattr(finder, "_find", lambda *_: gate.wait(20) and [])
        held = asyncio.create_task(finder.find(served, [{}, {}], count=1, strict=True))
        await asyncio.sleep(0.05)
        with pytest.raises(Exception, match="Too many rows are waiting"):
            await finder.find(served, [{}], count=1, strict=True)
        gate.set()
        await held
        assert finder.waiting == 0
        await models.stop()

    asyncio.run(go())
