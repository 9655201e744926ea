"""The Open Inference Protocol v2, asked by its stock client, against `Bundle.predict`."""

import base64
import io
import json
import math
import re
import socket
import struct
import threading

import numpy as np
import pytest
import tritonclient.http as triton
import uvicorn
from tritonclient.utils import InferenceServerException

import polymodal as pm
import tiny
from polymodal.server import tensors
from polymodal.server.app import create_app
from polymodal.server.logs import Log
from polymodal.server.settings import Settings
from running import ask, until

OUTPUTS = {
    "label": {"type": "classify", "coverage": 0.8},
    "price": "regress",
    "tags": {"type": "multilabel", "separator": "|"},
    "both": {"type": "regress", "targets": ["price", "x2"], "objective": "quantiles", "quantiles": [0.1, 0.5, 0.9]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    table = tiny.columns(media=True)
    table |= {"when": ["2024-05-17"] * 40, "new": [True, False] * 20, "x2": [2 * x for x in table["x"]]}
    spec = tiny.spec("text", "table", "image", outputs=OUTPUTS)
    spec["inputs"]["table"] = {
        "type": "table", "numbers": ["x"], "categories": ["colour"], "booleans": ["new"], "dates": ["when"],
    }  # fmt: skip
    spec["inputs"]["photo"] = spec["inputs"].pop("image") | {"column": "image"}
    return pm.fit(spec, table, cache=False).save(tmp_path_factory.mktemp("bundles") / "fruit")


@pytest.fixture(scope="module")
def bundle(folder):
    return pm.Bundle.load(folder)


@pytest.fixture(scope="module")
def host(folder):
    settings = Settings.make(folder, max_rows=8, max_body=1 << 20, watch=0)
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(settings, log=Log(io.StringIO()))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", http="httptools"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    until(lambda: server.started, "the server's start")
    yield "{}:{}".format(*listener.getsockname())
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(host):
    with triton.InferenceServerClient(host) as client:
        yield client


def tensor(name, values, datatype, binary=True, shape=None):
    array = np.array(values, {"BYTES": np.object_, "BOOL": bool}.get(datatype) or triton_dtype(datatype))
    array = array.reshape(shape or (-1,))
    made = triton.InferInput(name, list(array.shape), datatype)
    return made.set_data_from_numpy(array, binary_data=binary)


def triton_dtype(datatype):
    return {"FP": "float", "UI": "uint", "IN": "int"}[datatype[:2]] + datatype.lstrip("FPUINT")


def rows(count=3):
    return [
        {
            "text": f"sweet fruit number {i}", "x": 0.25 * i, "colour": ["red", "blue"][i % 2], "new": i % 2 == 0,
            "when": "2023-01-02", "image": tiny.picture(i),
        }
        for i in range(count)
    ]  # fmt: skip


def as_tensors(found, binary=True):
    kinds = {"text": "BYTES", "x": "FP64", "colour": "BYTES", "new": "BOOL", "when": "BYTES", "image": "BYTES"}
    values = {column: [row[column] for row in found] for column in kinds}
    if not binary:
        values["image"] = [base64.b64encode(image).decode() for image in values["image"]]
    return [tensor(column, values[column], kind, binary) for column, kind in kinds.items()]


def near(value):
    return pytest.approx(value, abs=1e-5)


def check(result, predicted):
    """Every output tensor says what `Bundle.predict` says."""
    label = [row["label"] for row in predicted]
    text = lambda name: [x.decode() if isinstance(x, bytes) else x for x in result.as_numpy(name)]  # noqa: E731
    assert text("label") == [row["class"] for row in label]
    assert result.as_numpy("label.probability") == near([row["probability"] for row in label])
    assert result.as_numpy("label.probabilities") == near(np.array([list(r["probabilities"].values()) for r in label]))
    assert list(map(json.loads, text("label.set"))) == [row["set"] for row in label]
    for key in ("value", "low", "high", "std"):
        name = "price" if key == "value" else f"price.{key}"
        assert result.as_numpy(name) == near([row["price"][key] for row in predicted])
    assert list(map(json.loads, text("tags"))) == [row["tags"]["labels"] for row in predicted]
    both = np.array([[list(q.values()) for q in row["both"]["quantiles"].values()] for row in predicted])
    assert both.shape == (len(predicted), 3, 2)
    assert result.as_numpy("both.quantiles") == near(both)
    assert result.as_numpy("both") == near(np.array([list(row["both"]["value"].values()) for row in predicted]))
    assert list(map(json.loads, text("absent"))) == predicted.absent


def test_health_and_metadata(client, bundle):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fruit")
    assert not client.is_model_ready("pear")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    told = client.get_model_metadata("fruit")
    assert client.is_model_ready("fruit", told["versions"][0])
    assert not client.is_model_ready("fruit", "000000000000")
    assert {i["name"]: i["datatype"] for i in told["inputs"]} == {
        "text": "BYTES", "x": "FP64", "colour": "BYTES", "new": "BOOL", "when": "BYTES", "image": "BYTES",
    }  # fmt: skip
    outputs = {output["name"]: output for output in told["outputs"]}
    assert outputs["label.probabilities"]["parameters"] == {"names": [["a", "b"]]}
    assert outputs["both.quantiles"]["parameters"] == {"names": [["0.1", "0.5", "0.9"], ["price", "x2"]]}
    assert outputs["both.quantiles"]["shape"] == [-1, 3, 2]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_answers_are_those_of_predict(client, bundle, binary, count):
    found = rows(count)
    result = client.infer("fruit", as_tensors(found, binary), request_id="one")
    check(result, bundle.predict(found))
    told = result.get_response()
    assert told["id"] == "one"
    assert [told["model_name"], told["model_version"]] == ["fruit", client.get_model_metadata("fruit")["versions"][0]]


@pytest.mark.parametrize("binary", [True, False])
def test_only_what_is_wanted_comes_back(client, bundle, binary):
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("price", "label")]
    result = client.infer("fruit", as_tensors(rows(2)), outputs=wanted)
    outputs = result.get_response()["outputs"]
    assert [output["name"] for output in outputs] == ["price", "label"]
    assert all(("data" in output) != binary for output in outputs)
    assert result.as_numpy("price") == near([row["price"]["value"] for row in bundle.predict(rows(2))])
    assert result.as_numpy("label").shape == (2,)


def test_some_outputs_binary_and_some_not(client, bundle):
    wanted = [triton.InferRequestedOutput("price"), triton.InferRequestedOutput("label", binary_data=False)]
    result = client.infer("fruit", as_tensors(rows(2)), outputs=wanted)
    assert result.as_numpy("price") == near([row["price"]["value"] for row in bundle.predict(rows(2))])
    assert "data" in result.get_output("label")


@pytest.mark.parametrize(
    ("column", "values", "datatype", "same"),
    [
        ("x", [1.5, -2], "FP32", [1.5, -2]),
        ("x", [1.5, -2], "FP16", [1.5, -2]),
        ("x", [3, -2], "INT8", [3, -2]),
        ("x", [3, 2], "UINT64", [3, 2]),
        ("x", [b"1.5", b"2e0"], "BYTES", [1.5, 2.0]),
        ("x", [math.nan, 1.0], "FP64", [None, 1.0]),
        ("new", [1, 0], "INT32", [True, False]),
        ("new", [b"yes", b""], "BYTES", [True, None]),
        ("new", [True, False], "BOOL", [True, False]),
        ("colour", ["red", ""], "BYTES", ["red", None]),
        ("colour", [7, 8], "INT64", ["7", "8"]),
        ("when", [b"2024-02-29T13:30:00", b""], "BYTES", ["2024-02-29T13:30:00", None]),
        ("text", ["sauer und süß", ""], "BYTES", ["sauer und süß", None]),
    ],
)
def test_a_column_takes_what_says_the_same(client, bundle, column, values, datatype, same):
    predicted = bundle.predict([{column: value} for value in same])
    check(client.infer("fruit", [tensor(column, values, datatype)]), predicted)
    check(client.infer("fruit", [tensor(column, values, datatype, shape=(2, 1))]), predicted)


def test_an_input_may_be_named_and_media_be_absent(client, bundle):
    image = tiny.picture(5)
    result = client.infer("fruit", [tensor("photo", [image, b""], "BYTES")])
    check(result, bundle.predict([{"image": image}, {"image": None}]))


def test_null_is_absent_in_json(host, bundle):
    call = {"inputs": [{"name": "x", "shape": [2, 1], "datatype": "FP64", "data": [[1], [None]]}]}
    status, _, told = ask(f"http://{host}/v2/models/fruit/infer", call)
    assert status == 200
    assert next(o for o in told["outputs"] if o["name"] == "price")["data"] == near(
        [row["price"]["value"] for row in bundle.predict([{"x": 1}, {"x": None}])]
    )


def test_a_broken_cell_is_refused_or_told(client, bundle):
    broken = [tensor("x", [b"12 kg", b"2"], "BYTES"), tensor("image", [b"no picture", b""], "BYTES")]
    with pytest.raises(InferenceServerException, match=r"x\[0\].*number") as caught:
        client.infer("fruit", broken)
    assert caught.value.status() == "422"
    result = client.infer("fruit", broken, parameters={"strict": False})
    check(result, bundle.predict([{"x": None, "image": None}, {"x": 2.0, "image": None}]))
    first, second = map(json.loads, result.as_numpy("broken"))
    assert [cell["column"] for cell in first] == ["x", "image"] or [c["column"] for c in first] == ["image", "x"]
    assert second == []


def test_text_that_is_not_utf8_is_a_broken_cell(client):
    with pytest.raises(InferenceServerException, match=r"text\[1\]: .*UTF-8"):
        client.infer("fruit", [tensor("text", [b"fine", b"\xff\xfe"], "BYTES")])
    result = client.infer("fruit", [tensor("text", [b"fine", b"\xff\xfe"], "BYTES")], parameters={"strict": False})
    assert json.loads(result.as_numpy("broken")[1])[0]["column"] == "text"


def one(**changes):
    return {"name": "x", "shape": [1], "datatype": "FP64", "data": [1.0]} | changes


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        ({}, 422, "inputs"),
        ({"inputs": []}, 422, "inputs"),
        ({"inputs": [one(name="colours")]}, 422, "Did you mean 'colour'"),
        ({"inputs": [one(name="label", datatype="BYTES", data=["a"])]}, 422, "predicts"),
        ({"inputs": [one(), one()]}, 422, "given once"),
        ({"inputs": [one(), one(name="text", shape=[2], datatype="BYTES", data=["a", "b"])]}, 422, "same number"),
        ({"inputs": [one(shape=[])]}, 422, "shape"),
        ({"inputs": [one(shape=[1, 2])]}, 422, "shape"),
        ({"inputs": [one(shape=[-1])]}, 422, "shape"),
        ({"inputs": [one(shape=[2])]}, 422, "2 elements"),
        ({"inputs": [one(shape=[0], data=[])]}, 422, "1 or more"),
        ({"inputs": [one(shape=[9], data=[1.0] * 9)]}, 413, "at most 8 rows"),
        ({"inputs": [one(datatype="FP8")]}, 422, "datatype"),
        ({"inputs": [one(datatype="BOOL", data=[True])]}, 422, "datatype"),
        ({"inputs": [one(data=["1"])]}, 422, r"x\[0\]"),
        ({"inputs": [one(datatype="INT8", data=[1.5])]}, 422, r"x\[0\]"),
        ({"inputs": [one(data=[True])]}, 422, r"x\[0\]"),
        ({"inputs": [one(parameters={"shared_memory_region": "a"})]}, 422, "shared_memory_region"),
        ({"inputs": [one(parameters={"binary_data_size": 8})]}, 400, "8 bytes"),
        ({"inputs": [one()], "outputs": [{"name": "prise"}]}, 422, "Did you mean 'price'"),
        ({"inputs": [one()], "outputs": [{"name": "label", "parameters": {"classification": 2}}]}, 422, "classif"),
        ({"inputs": [one()], "parameters": {"priority": 1}}, 422, "priority"),
        ({"inputs": [one()], "parameters": {"strict": "no"}}, 422, "strict"),
        ({"inputs": [one(name="image", datatype="BYTES", data=["http://127.0.0.1/x"])]}, 422, "URL"),
        ({"inputs": [one(name="image", datatype="BYTES", data=["%%"])]}, 422, r"image\[0\]"),
        ([], 422, "The body"),
        (b"{", 400, "JSON"),
        (b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP64", "data": [NaN]}]}', 400, "JSON"),
    ],
)
def test_a_wrong_call_is_refused_in_words(host, call, status, message):
    got, _, told = ask(f"http://{host}/v2/models/fruit/infer", call)
    assert got == status
    assert list(told) == ["error"]
    assert re.search(message, told["error"])


def binary(raw, header=None, **changes):
    tensor = {"name": "x", "shape": [1], "datatype": "FP64", "parameters": {"binary_data_size": len(raw)}} | changes
    text = json.dumps({"inputs": [tensor]}).encode()
    return text + raw, {"Inference-Header-Content-Length": str(len(text)) if header is None else header}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (binary(b"1234567"), 422, "whole elements"),
        (binary(b"12345678" * 2), 422, "1 elements"),
        (binary(b"12345678", data=[1.0]), 422, "got both"),
        (binary(b"\x05\0\0\0abc", datatype="BYTES"), 422, "length of 4 bytes"),
        (binary(b"\xff\xff\xff\xffabc", datatype="BYTES"), 422, "length of 4 bytes"),
        (binary(b"12345678", header="9999999"), 400, "Inference-Header"),
        (binary(b"12345678", header="-3"), 400, "Inference-Header"),
        (binary(b"12345678", header="9" * 5000), 400, "Inference-Header"),
        (binary(b"12345678", header="12"), 400, "JSON"),
        (binary(b"12345678", parameters={"binary_data_size": 4}), 400, "4 bytes"),
    ],
)
def test_wrong_bytes_are_refused_in_words(host, body, status, message):
    content, headers = body
    got, _, told = ask(f"http://{host}/v2/models/fruit/infer", content, **headers)
    assert (got, list(told)) == (status, ["error"])
    assert message in told["error"]


def test_packed_bodies_are_refused(client):
    with pytest.raises(InferenceServerException, match="packed") as caught:
        client.infer("fruit", as_tensors(rows(1)), request_compression_algorithm="gzip")
    assert caught.value.status() == "415"


def test_unknown_model_version_and_path(client, host):
    with pytest.raises(InferenceServerException, match="Did you mean 'fruit'") as caught:
        client.infer("fruits", as_tensors(rows(1)))
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match="version") as caught:
        client.infer("fruit", as_tensors(rows(1)), model_version="3")
    assert caught.value.status() == "404"
    assert ask(f"http://{host}/v2/nothing")[0] == 404
    assert ask(f"http://{host}/v2/models/fruit/infer")[0] == 405


def test_limits_of_the_body_and_of_time(client, host):
    large = [tensor("text", ["a" * (2 << 20)], "BYTES")]
    with pytest.raises(InferenceServerException, match="bytes") as caught:
        client.infer("fruit", large)
    assert caught.value.status() == "413"
    with pytest.raises(InferenceServerException, match="deadline") as caught:
        client.infer("fruit", as_tensors(rows(1)), timeout=1)
    assert caught.value.status() == "504"
    url = f"http://{host}/v2/models/fruit/infer"
    assert ask(url, {"inputs": [one()]}, **{"X-Deadline-Ms": "0.001"})[0] == 504
    assert ask(url, {"inputs": [one()]}, **{"X-Deadline-Ms": "soon"})[0] == 400
    assert ask(url, {"inputs": [one()]}, **{"X-Deadline-Ms": "nan"})[0] == 400
    assert ask(url, {"inputs": [one()], "parameters": {"timeout": 10**400}})[0] == 200


def test_wrong_bodies_are_told_shortly(host):
    url = f"http://{host}/v2/models/fruit/infer"
    wrong = ([], {"inputs": [one()], "k" * 9999: 1}, {"inputs": [one() | {"shape": [1] * 9999}]},
             {"inputs": [one() | {"shape": [10**4000]}]})  # fmt: skip
    for body in wrong:
        status, _, told = ask(url, body)
        assert status in (413, 422)
        assert len(told["error"]) < 300


def test_outputs_get_names_of_their_own():
    told = tensors.outputs(pm.fit(
        tiny.spec("table", outputs={"label": "classify", "absent": {"type": "regress", "column": "price"}}),
        tiny.columns(), cache=False,
    ).spec.outputs)  # fmt: skip
    names = [output.name for output in told]
    assert len(set(names)) == len(names)
    assert {"absent", "absent_", "broken"} <= set(names)


def test_bytes_have_their_length_before_them():
    output = tensors.Output("label", "BYTES", (), ("label",))
    head, raw = output.tensor([{"label": "ä"}, {"label": 3}, {"label": True}], binary=True)
    assert raw == struct.pack("<I", 2) + "ä".encode() + struct.pack("<I", 1) + b"3" + struct.pack("<I", 4) + b"true"
    assert head == {"name": "label", "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(raw)}}
