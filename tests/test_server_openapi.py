"""The description of the interface: it is valid, it is true, and its examples run."""

import json

import jsonschema_rs
import pytest
import schemathesis

import tiny
from hosted import ask, multipart, running
from polymodal.server.app import create_app
from polymodal.server.models import Models
from polymodal.server.openapi import openapi
from polymodal.server.settings import Settings

TOKEN = "a-long-secret"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    outputs = {"label": {"type": "classify", "coverage": 0.9}, "price": "regress", "tags": "multilabel"}
    whole = tiny.fitted("text", "table", "image", "audio", outputs=outputs)
    return whole.save(folder / "whole"), tiny.fitted("text").save(folder / "plain")


@pytest.fixture(scope="module")
def place(folders):
    with running(create_app(Settings.make(*folders, device="cpu", max_rows=7))) as place:
        yield place


@pytest.fixture(scope="module")
def document(place):
    return ask(place, "/openapi.json").json


def predict(document, status=None):
    operation = document["paths"]["/v1/predict"]["post"]
    return operation if status is None else operation["responses"][status]


def bodies(document, media_type):
    return [
        example["value"] for example in predict(document)["requestBody"]["content"][media_type]["examples"].values()
    ]


def schema(document, name):
    """A validator of one of the document's schemas."""
    return jsonschema_rs.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **document})


def test_it_is_valid_openapi_and_each_schema_is_valid(document):
    assert document["openapi"] == "3.1.0"
    schemathesis.openapi.from_dict(document).validate()
    for name in document["components"]["schemas"]:
        jsonschema_rs.meta.validate(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **document["components"]["schemas"][name]}
        )
        schema(document, name)


def test_every_operation_has_a_name_of_its_own_and_every_path_is_there(document, place):
    operations = [o for path in document["paths"].values() for o in path.values()]
    assert len({o["operationId"] for o in operations}) == len(operations)
    for path, methods in document["paths"].items():
        if "get" in methods and "{" not in path:
            reply = ask(place, path)
            assert reply.status == 200, path
            kind = reply.headers["content-type"].split(";")[0]
            assert kind in methods["get"]["responses"]["200"]["content"]
            if kind == "application/json":
                told = methods["get"]["responses"]["200"]["content"][kind]["schema"]
                jsonschema_rs.Draft202012Validator({**document, **told}).validate(reply.json)


def test_every_json_example_fits_its_schema_and_is_answered_as_it_stands(document, place):
    shown = bodies(document, "application/json")
    assert len(shown) == 7  # one row, explained, several, and without each of four inputs
    answer = predict(document, "200")["content"]["application/json"]["schema"]
    for body in shown:
        schema(document, "Request.whole").validate(body)
        reply = ask(place, "/v1/predict", body)
        assert reply.status == 200, reply.body
        jsonschema_rs.Draft202012Validator({**document, **answer}).validate(reply.json)
        schema(document, "Prediction.whole").validate(reply.json["predictions"][0])
        assert ("explanations" in reply.json) == body.get("explain", False)


def test_the_form_example_is_answered_like_json(document, place):
    [form] = bodies(document, "multipart/form-data")
    schema(document, "Form.whole").validate(form)
    body, kind = multipart(*[(name, cell.encode(), None, None) for name, cell in form.items()])
    reply = ask(place, "/v1/predict", body, Content_Type=kind)
    assert reply.status == 200, reply.body
    assert (
        reply.json["predictions"]
        == ask(place, "/v1/predict", bodies(document, "application/json")[0]).json["predictions"]
    )


def test_the_examples_of_every_model_run(document, place):
    for name in ("whole", "plain"):
        for body in document["components"]["schemas"][f"Request.{name}"]["examples"]:
            reply = ask(place, f"/v1/predict?model={name}", body)
            assert (reply.status, reply.json["model"]) == (200, name)
            schema(document, f"Prediction.{name}").validate(reply.json["predictions"][0])


def test_limits_and_names_are_told(document):
    request = document["components"]["schemas"]["Request.whole"]
    row, rows = request["properties"]["inputs"]["oneOf"]
    assert (rows["minItems"], rows["maxItems"]) == (1, 7)
    assert list(row["properties"]) == ["text", "x", "colour", "table", "image", "audio"]
    assert row["additionalProperties"] is False
    assert request["additionalProperties"] is False
    assert row["properties"]["image"]["contentEncoding"] == "base64"
    assert "enum" not in row["properties"]["colour"]
    assert "red" in row["properties"]["colour"]["description"]
    [model] = [p for p in predict(document)["parameters"] if p["in"] == "query"]
    assert model["schema"]["enum"] == ["whole", "plain"]
    assert [s["$ref"] for s in predict(document)["requestBody"]["content"]["application/json"]["schema"]["anyOf"]] == [
        "#/components/schemas/Request.whole",
        "#/components/schemas/Request.plain",
    ]


def test_settings_show_in_it(folders):
    def described(**options):
        models = Models(Settings.make(folders[0], device="cpu", **options))
        return json.dumps(openapi(models))

    assert described() != described(token=TOKEN)
    assert TOKEN not in described(token=TOKEN)
    assert described() != described(deadline=3)


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), ({"inputs": {"txt": "x"}}, 422), ({"inputs": [{}] * 8}, 413)]
)
def test_errors_are_as_described(body, status, document, place):
    reply = ask(place, "/v1/predict", body)
    assert reply.status == status
    assert str(status) in predict(document)["responses"]
    schema(document, "Error").validate(reply.json)


def test_a_request_that_its_schema_refuses_is_refused(document, place):
    """And the other way round: wrong names, wrong types, too many rows, nothing."""
    wrong = [{}, {"inputs": []}, {"inputs": "x"}, {"inputs": {"y": 1}}, {"inputs": {}, "x": 1}, {"inputs": [{}] * 8}]
    wrong += [{"inputs": {"image": 3}}, {"inputs": {"text": []}}, {"inputs": {"table": {"y": 1}}}, {"inputs": [None]}]
    wrong += [{"inputs": {}, "strict": "maybe"}, {"inputs": {"table": 3}}, {"inputs": {"label": "a"}}]
    for body in wrong:
        assert not schema(document, "Request.whole").is_valid(body), body
        assert 400 <= ask(place, "/v1/predict", body).status < 500, body


def test_a_token_is_asked_for_and_told(folders):
    with running(create_app(Settings.make(folders[1], device="cpu", token=TOKEN))) as place:
        assert ask(place, "/v1/models").status == 401
        document = ask(place, "/openapi.json", Authorization=f"Bearer {TOKEN}").json
        assert document["security"] == [{"token": []}]
        assert document["components"]["securitySchemes"]["token"] == {"type": "http", "scheme": "bearer"}
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                free = operation.get("security") == []
                reply = ask(place, path, b"{}" if method == "post" else None)
                assert (reply.status != 401) == free, path
                assert ("401" in operation["responses"]) == (not free), path
