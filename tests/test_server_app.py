"""The routes of a server, over a model without training and over a small one."""

import asyncio
import base64
import json
import threading

import pytest
from starlette.testclient import TestClient

import tiny
from polymodal.server.app import create_app
from polymodal.server.batching import Late
from polymodal.server.models import Models
from polymodal.server.settings import Settings
from stage import SPEC, Client, Constant, Held, Shelf, Stage, scope

ROW = {"inputs": {"words": "a"}}
PATHS = ("/v1/models", "/v1/spec", "/v1/card", "/healthz", "/readyz", "/metrics", "/openapi.json")


def test_a_prediction_is_answered_row_by_row():
    stage = Stage()
    reply = stage.ask("POST", "/v1/predict", {"inputs": [{"words": "a"}, {}]}, X_Request_Id="r")
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["content-length"] == str(len(reply.body))
    assert reply.json == {
        "model": "m", "version": "0" * 12, "request_id": "r", "predictions": 2 * [stage.served[0].prediction],
        "absent": [["image"], ["image"]], "broken": [[], []], "repairs": [{}, {}],
    }  # fmt: skip
    assert stage.served[0].asked[0]["rows"] == [{"words": "a"}, {}]


def test_explain_and_strict_reach_the_model():
    stage = Stage()
    reply = stage.ask("POST", "/v1/predict", {**ROW, "explain": True, "strict": False})
    assert reply.json["explanations"] == [{"inputs": {}}]
    assert stage.served[0].asked[0]["explain"] is True
    assert stage.served[0].asked[0]["strict"] is False


def test_cells_that_could_not_be_decoded_are_listed_with_the_models_own():
    stage = Stage()
    reply = stage.ask("POST", "/v1/predict", {"inputs": [{}, {"image": "??"}], "strict": False})
    assert [[cell["column"] for cell in row] for row in reply.json["broken"]] == [[], ["image"]]


def test_model_names_one_of_several_bundles():
    stage = Stage(Constant("one"), Constant("two"))
    assert stage.ask("POST", "/v1/predict", ROW).json["model"] == "one"
    assert stage.ask("POST", "/v1/predict?model=two", ROW).json["model"] == "two"
    for path in ("/v1/predict", "/v1/spec", "/v1/card"):
        method = "POST" if path == "/v1/predict" else "GET"
        reply = stage.ask(method, f"{path}?model=three", ROW if method == "POST" else None)
        assert (reply.status, reply.json["error"]["type"]) == (404, "not_found")
        assert stage.ask(method, f"{path}?modle=two", ROW if method == "POST" else None).status == 422
    told = stage.ask("GET", "/v1/models").json
    assert told["models"] == [{"name": name, "version": "0" * 12, "ready": True} for name in ("one", "two")]
    assert [model["id"] for model in told["data"]] == ["one", "two"], "as clients of the OpenAI API read it"


def test_x_deadline_ms_shortens_the_deadline_and_cannot_lengthen_it():
    async def run(**headers):
        stage = Stage(deadline=5.0)
        begun = asyncio.get_running_loop().time()
        reply = await stage.call("POST", "/v1/predict", ROW, **headers)
        return reply.status, stage.served[0].asked[0]["deadline"] - begun

    for headers, seconds in (({}, 5.0), ({"X_Deadline_Ms": "500"}, 0.5), ({"X_Deadline_Ms": "60000"}, 5.0)):
        status, left = asyncio.run(run(**headers))
        assert (status, round(left, 1)) == (200, seconds)


@pytest.mark.parametrize("wrong", ["", "soon", "0", "-3", "nan", "inf", "1e400", "1_000"])
def test_a_wrong_deadline_is_a_bad_request(wrong):
    assert Stage().ask("POST", "/v1/predict", ROW, X_Deadline_Ms=wrong).status == 400


def test_the_deadline_ends_the_work():
    async def run():
        model = Held()
        reply = await Stage(model).call("POST", "/v1/predict", ROW, X_Deadline_Ms="5")
        return reply, model

    reply, model = asyncio.run(run())
    assert (reply.status, reply.json["error"]["type"]) == (504, "deadline")
    assert model.cancelled
    late = Constant()
    late.error = Late("late")
    assert Stage(late).ask("POST", "/v1/predict", ROW).status == 504


def test_while_nothing_is_loaded_the_server_says_so():
    stage = Stage()
    stage.shelf.ready = False
    stage.shelf.served.clear()
    assert stage.ask("GET", "/healthz").status == 200
    for method, path in (("GET", "/readyz"), ("POST", "/v1/predict"), ("GET", "/v1/spec"), ("GET", "/openapi.json")):
        reply = stage.ask(method, path, ROW if method == "POST" else None)
        assert (reply.status, reply.json["error"]["type"], reply.headers["retry-after"]) == (503, "unavailable", "1")
    assert stage.ask("GET", "/v1/models").json["models"] == [{"name": "m", "version": None, "ready": False}]


@pytest.mark.parametrize("path", ["/v1/predict", *PATHS])
def test_other_methods_are_told_which_ones_there_are(path):
    for method in ("GET", "HEAD") if path == "/v1/predict" else ("POST", "DELETE"):
        reply = Stage().ask(method, path)
        assert reply.status == 405
        assert set(reply.headers["allow"].split(", ")) == ({"POST"} if path == "/v1/predict" else {"GET", "HEAD"})
        assert (reply.body == b"") == (method == "HEAD")


@pytest.mark.parametrize("path", ["/v1/predict/", "/v1/models/", "/v1", "/V1/models", "/nowhere", "//v1/models"])
def test_other_paths_are_not_there_and_lead_nowhere(path):
    reply = Stage().ask("GET", path)
    assert (reply.status, reply.json["error"]["type"]) == (404, "not_found")
    assert "location" not in reply.headers


@pytest.mark.parametrize("path", PATHS)
def test_what_can_be_read_can_be_asked_for_without_its_content(path):
    app, shelf = Stage().app, []
    with TestClient(app) as client:
        shelf.append(client.get(path))
        head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == shelf[0].headers["content-type"]


def test_the_spec_tells_what_a_form_needs():
    found = Stage(max_rows=7).ask("GET", "/v1/spec?model=m").json
    assert (found["model"], found["version"]) == ("m", "0" * 12)
    assert [field["column"] for field in found["inputs"]] == [
        "words", "image", "sound", "width", "weight", "colour", "new",
    ]  # fmt: skip
    assert found["outputs"][0]["task"] == "label"
    assert found["spec"]["dim"] == SPEC.dim
    assert found["limits"] == {"max_body": 32 << 20, "max_rows": 7, "max_pixels": 50_000_000, "max_seconds": 600.0}


def test_what_is_told_of_a_bundle_changes_with_its_version():
    stage = Stage(Constant(version="a"))
    paths = ("/v1/spec", "/openapi.json", "/v1/card")
    before = [stage.ask("GET", path).body for path in paths]
    assert [stage.ask("GET", path).body for path in paths] == before
    stage.shelf.served["m"] = Constant(version="b", spec=SPEC.model_copy(update={"dim": 8}))
    stage.shelf.served["m"].card = "# Another card"
    after = [stage.ask("GET", path).body for path in paths]
    assert b'"version":"b"' in after[0]
    assert b'"dim":8' in after[0]
    assert after[2] == b"# Another card"


def test_the_card_is_markdown():
    reply = Stage().ask("GET", "/v1/card")
    assert (reply.headers["content-type"], reply.body) == ("text/markdown; charset=utf-8", b"# A card")


def test_the_start_of_the_server_starts_the_models_and_its_end_stops_them():
    stage = Stage()
    with TestClient(stage.app):
        assert (stage.shelf.started, stage.shelf.stopped) == (True, False)
    assert stage.shelf.stopped


def test_the_models_count_in_the_servers_metrics():
    stage = Stage()
    assert stage.shelf.metrics is stage.metrics
    place = Settings.make("m=nowhere")
    shelf = Shelf(place, Constant())
    create_app(place, shelf)  # pyright: ignore[reportArgumentType]
    assert shelf.metrics is not None


def test_two_requests_at_once_get_their_own_answers():
    class Echo(Constant):
        async def predict(self, rows, **how):
            await asyncio.sleep(0)
            self.prediction = {"label": {"class": rows[0]["words"]}}
            return await super().predict(rows, **how)

    async def run():
        stage = Stage(Echo())
        calls = (
            stage.call("POST", "/v1/predict", {"inputs": {"words": str(i)}}, X_Request_Id=str(i)) for i in range(50)
        )
        return await asyncio.gather(*calls)

    for i, reply in enumerate(asyncio.run(run())):
        assert reply.json["predictions"] == [{"label": {"class": str(i)}}]
        assert reply.json["request_id"] == reply.headers["x-request-id"] == str(i)


def test_a_body_in_many_pieces_is_put_together():
    body = json.dumps(ROW).encode()
    pieces = [{"type": "http.request", "body": body[i : i + 1], "more_body": True} for i in range(len(body))]
    client, stage = Client([*pieces, {"type": "http.request"}]), Stage()
    head = {"content-type": "application/json", "transfer-encoding": "chunked"}
    asyncio.run(stage.app(scope("POST", "/v1/predict", head), client.receive, client.send))
    assert client.reply.status == 200
    assert stage.served[0].asked[0]["rows"] == [ROW["inputs"]]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A fitted bundle with four inputs, and its server."""
    bundle = tiny.fitted("text", "image", "audio", "table")
    folder = bundle.save(tmp_path_factory.mktemp("bundles") / "small")
    settings = Settings.make(folder, device="cpu", runtime="torch", watch=0, token="of-a-test")
    with TestClient(create_app(settings, Models(settings)), headers={"Authorization": "Bearer of-a-test"}) as client:
        yield bundle, client


def cells(i):
    return {"text": "red apple pie", "x": 0.5 + i, "colour": "red", "image": tiny.picture(i), "audio": tiny.sound(i)}


def as_json(row):
    return {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in row.items()}


def close(one, other):
    """Whether two predictions say the same to within what a batch's size changes."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return all(close(one[key], other[key]) for key in one)
    return one == pytest.approx(other, abs=1e-5) if isinstance(one, float) else one == other


def test_json_and_form_are_answered_as_predict_answers(small):
    bundle, client = small
    rows = [cells(i) for i in range(3)] + [{"text": "old iron bridge"}, {"image": tiny.picture(9), "x": 1.0}]
    wanted = bundle.predict(rows)
    answer = client.post("/v1/predict", json={"inputs": [as_json(row) for row in rows]})
    assert answer.status_code == 200, answer.text
    for got, expected in zip(answer.json()["predictions"], wanted, strict=True):
        assert close(got, expected)
    assert answer.json()["absent"] == wanted.absent
    for row, expected in zip(rows, wanted, strict=True):
        files = {k: (k, v) for k, v in row.items() if isinstance(v, bytes)}
        fields = {k: str(v) for k, v in row.items() if not isinstance(v, bytes)}
        sent = {"files": files} if files else {"files": {k: (None, v) for k, v in fields.items()}}
        answer = client.post("/v1/predict", **sent, data=fields if files else None)
        assert answer.status_code == 200, answer.text
        assert close(answer.json()["predictions"][0], expected)


def test_a_broken_file_is_refused_by_its_path_or_listed(small):
    _, client = small
    row = as_json(cells(0)) | {"image": base64.b64encode(tiny.picture(0)[:40]).decode()}
    answer = client.post("/v1/predict", json={"inputs": [{}, row]})
    assert answer.status_code == 422
    assert answer.json()["error"]["where"] == "inputs[1].image"
    answer = client.post("/v1/predict", json={"inputs": [{}, row], "strict": False}).json()
    assert answer["absent"][1] == ["image"]
    assert answer["broken"][1][0]["column"] == "image"


def test_a_row_without_anything_is_answered(small):
    _, client = small
    answer = client.post("/v1/predict", json={"inputs": {}}).json()
    assert answer["absent"] == [["text", "image", "audio", "table"]]
    assert answer["predictions"][0]["label"]["class"] in ("a", "b")


def test_presence_and_batches_are_counted(small):
    _, client = small
    client.post("/v1/predict", json={"inputs": {"text": "a"}})
    text = client.get("/metrics").text
    assert 'polymodal_inputs_total{input="image",model="small",state="absent"}' in text
    assert 'polymodal_batch_rows_count{model="small"}' in text


def test_many_clients_get_their_own_answers(small):
    bundle, client = small
    wanted, wrong = bundle.predict([cells(i) for i in range(24)]), []

    def ask(start):
        for i in range(start, 24, 8):
            got = client.post("/v1/predict", json={"inputs": as_json(cells(i))}).json()
            if not close(got["predictions"][0], wanted[i]):
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_query_names_one_model():
    stage = Stage()
    assert stage.ask("GET", "/v1/spec?model=m").status == 200
    assert stage.ask("GET", "/v1/spec?model=m&model=m").status == 422
