"""Chats over HTTP: the stock client of the OpenAI API, streams, bad requests, and clients that hang up."""

import base64
import gc
import json
import shutil
import threading
import time
import weakref
from pathlib import Path

import openai
import pytest
import torch

import polymodal as pm
import tiny
from hosted import ask, connect, running
from polymodal.nn.language.decode import Decoding, say
from polymodal.nn.language.talk import Talk
from polymodal.server.app import create_app
from polymodal.server.served import Served
from polymodal.server.settings import Settings
from polymodal.server.speaker import Speaker
from polymodal.types import Masked
from running import Running, until
from talker import tiny_language

PICTURE = base64.b64encode(tiny.picture(3)).decode()
SOUND = base64.b64encode(tiny.sound(3)).decode()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """One that reads a picture, a sound, numbers and a question; it has learned next to nothing."""
    name = tiny_language(tmp_path_factory.mktemp("talker"), context=512)
    table = tiny.columns(24, media=True)
    table["question"], table["answer"] = (
        ["what is it"] * 24,
        ["red apple" if y == "a" else "no" for y in table["label"]],
    )
    inputs = {n: tiny.SCRATCH[n] for n in ("image", "audio", "table")}
    spec = {
        "inputs": inputs | {"question": {"type": "prompt", "backbone": name}},
        "outputs": {
            "answer": {
                "type": "generate",
                "decoder": {"backbone": name, "projector": "linear"},
                "decoding": {"tokens": 12},
            }
        },
        "dim": 16,
        "training": {"epochs": 1},
    }
    model = pm.fit(spec, {n: table[n] for n in ("image", "audio", "x", "colour", "question", "answer")}, cache=False)
    return model.save(tmp_path_factory.mktemp("bundle") / "stamps"), model


@pytest.fixture(scope="module")
def place(bundle):
    with running(create_app(Settings.make(bundle[0], page=False, deadline=30))) as found:
        yield found


@pytest.fixture
def client(place):
    with openai.OpenAI(base_url=f"http://{place[0]}:{place[1]}/v1", api_key="none", max_retries=0) as found:
        yield found


CONTENT = [
    {"type": "text", "text": "what is it"},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
    {"type": "input_audio", "input_audio": {"data": SOUND, "format": "wav"}},
    {"type": "input_table", "input_table": {"x": 0.5, "colour": "red"}},
]
ROW = {"question": "what is it", "image": tiny.picture(3), "audio": tiny.sound(3), "x": 0.5, "colour": "red"}


def said(client, content, **more):
    return client.chat.completions.create(model="stamps", messages=[{"role": "user", "content": content}], **more)


def test_the_stock_client_gets_what_predict_answers(client, bundle):
    expected = bundle[1].predict([ROW])[0]["answer"]["text"]
    found = said(client, CONTENT)
    assert found.choices[0].message.content == expected
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].finish_reason in ("stop", "length")
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.usage.completion_tokens <= 12
    again = said(client, CONTENT)
    assert again.choices == found.choices
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1
    assert found.model == "stamps"
    assert [model.id for model in client.models.list()] == ["stamps"]
    plain = said(client, "what is it")
    assert plain.choices[0].message.content == bundle[1].predict([{"question": "what is it"}])[0]["answer"]["text"]


def test_a_stream_says_the_same_piece_by_piece(client):
    whole = said(client, CONTENT)
    pieces = list(said(client, CONTENT, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == whole.choices[0].message.content
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert pieces[-1].usage.total_tokens == whole.usage.total_tokens
    assert {p.id for p in pieces} == {pieces[0].id}


def test_wishes_change_the_answer(client):
    assert said(client, CONTENT, max_tokens=1).usage.completion_tokens <= 1
    one, two = (said(client, CONTENT, temperature=1.5, seed=3).choices[0].message.content for _ in range(2))
    others = {said(client, CONTENT, temperature=1.5, seed=seed).choices[0].message.content for seed in range(4)}
    assert one == two
    assert len(others) > 1
    whole = said(client, CONTENT).choices[0].message.content
    stopped = said(client, CONTENT, stop=[whole[2:4]]).choices[0]
    assert stopped.message.content == whole[: whole.find(whole[2:4])]


def test_many_at_once_each_get_their_own(client):
    questions = ["what is it", "is it red", "no", "yes", "is it old what is it", "red"] * 3
    alone = {q: said(client, q).choices[0].message.content for q in set(questions)}
    found = {}

    def one(i, question):
        found[i] = said(client, question).choices[0].message.content

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(questions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(questions))] == [alone[q] for q in questions]


MESSAGE = {"role": "user", "content": "what is it"}
ANSWER = {"role": "assistant", "content": "red apple<end>"}
SYSTEM = {"role": "system", "content": "be <start>old"}


def test_a_conversation_is_laid_out_by_the_chat_template(client, bundle):
    language = bundle[1].model.decoders["answer"].answering
    special, plain = language.vocabulary._framed, language.vocabulary.ids
    again = MESSAGE | {"content": "is it red"}
    found = client.chat.completions.create(model="stamps", messages=[SYSTEM, MESSAGE, ANSWER, again])
    stretches = ["<start>system ", SYSTEM, "<end><start>user    ", MESSAGE, "<end><start>assistant ", ANSWER]
    stretches += ["<end><start>user    ", again, "<end><start>assistant "]
    parts = [
        special.encode(x, add_special_tokens=False).ids if isinstance(x, str) else plain(x["content"])
        for x in stretches
    ]
    ids = torch.tensor([[i for part in parts for i in part]])
    expected = say(language, Masked(language.embed(ids), torch.ones_like(ids, dtype=torch.bool)), Decoding(tokens=12))
    assert found.choices[0].message.content == expected[0].text
    assert found.usage.prompt_tokens == ids.shape[1]


def test_what_was_shown_in_an_earlier_turn_is_still_seen(client):
    first = {"role": "user", "content": CONTENT}
    whole = client.chat.completions.create(model="stamps", messages=[first, ANSWER, MESSAGE])
    blind = client.chat.completions.create(model="stamps", messages=[MESSAGE, ANSWER, MESSAGE])
    soft = said(client, CONTENT).usage.prompt_tokens - said(client, "what is it").usage.prompt_tokens
    assert soft > 2
    assert whole.usage.prompt_tokens - blind.usage.prompt_tokens == soft
    assert whole.choices[0].message.content != blind.choices[0].message.content
    third = [first, ANSWER, MESSAGE, {"role": "assistant", "content": "no"}, MESSAGE]
    more = client.chat.completions.create(model="stamps", messages=third)
    assert more.usage.prompt_tokens_details.cached_tokens >= whole.usage.prompt_tokens


def asked(*parts):
    """A request of one message."""
    return {"messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({}, 422, "messages must be a list of one or more objects"),
        ({"messages": []}, 422, "messages must be a list of one or more objects"),
        ({"messages": [MESSAGE, MESSAGE]}, 422, "messages[1].role must be 'assistant', got 'user'"),
        ({"messages": [MESSAGE, SYSTEM]}, 422, "messages[1].role must be 'assistant', got 'system'"),
        ({"messages": [SYSTEM]}, 422, "must end with one of the role 'user'"),
        ({"messages": [MESSAGE, ANSWER]}, 422, "must end with one of the role 'user'"),
        ({"messages": [{"role": "system", "content": [CONTENT[1]]}, MESSAGE]}, 422, "content[0].type must be 'text'"),
        ({"messages": [{"role": "user", "content": 3}]}, 422, "must be a text or a list of parts"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, 422, "must have a type of"),
        ({"messages": [{"role": "user", "content": [CONTENT[1], CONTENT[1]]}]}, 422, "one image more than"),
        ({"messages": [{"role": "user", "content": [CONTENT[0], CONTENT[0]]}]}, 200, ""),
        ({"messages": [MESSAGE], "max_token": 1}, 422, "Did you mean 'max_tokens'?"),
        ({"messages": [MESSAGE], "temperature": "hot"}, 422, "temperature must be a number"),
        ({"messages": [MESSAGE], "temperature": 99}, 422, "temperature: Input should be less than or equal to 10"),
        ({"messages": [MESSAGE], "max_tokens": 0}, 422, "tokens: Input should be greater than or equal to 1"),
        ({"messages": [MESSAGE], "max_tokens": 600}, 422, "context of 512"),
        ({"messages": [MESSAGE], "stop": [""]}, 422, "stop must hold texts"),
        ({"messages": [MESSAGE], "n": 2}, 422, "n must be 1"),
        ({"messages": [MESSAGE], "model": "other"}, 404, "model must be one of"),
        ({"messages": [{"role": "user", "content": [{"type": "input_table", "input_table": {"y": 1}}]}]}, 422, "'y'"),
        (asked({"type": "image_url", "image_url": {"url": "data:,x"}}), 422, "messages[0].content.image"),
        (asked({"type": "image_url", "image_url": {"url": ""}}), 422, "text 'url', got ''"),
        (asked({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}), 422, "got an empty image"),
        (asked({"type": "image_url", "image_url": CONTENT[1]["image_url"] | {"page": 2}}), 422, "got 'page'"),
        (asked({"type": "text", "text": "no", "image_url": {"url": "x"}}), 422, "got 'image_url'"),
        (asked({"type": "text", "text": "what is it " * 300}), 422, "must be shorter: 'question' was cut"),
        (asked({"type": "input_audio", "input_audio": {"data": "AA==", "format": "x"}}), 422, "format must be one of"),
        (asked({"type": "input_audio", "input_audio": {"data": "AA==", "format": []}}), 422, "format must be one of"),
        (asked(CONTENT[0], {"type": "input_table", "input_table": {"question": "no"}}), 422, "'question' once"),
        (asked(CONTENT[3], {"type": "input_table", "input_table": {"x": -5}}), 422, "'x' once"),
        ({"messages": [MESSAGE | {"tool_calls": [{"id": "1"}]}]}, 422, "got 'tool_calls'"),
        ({"messages": [MESSAGE, ANSWER] * 300}, 413, "messages must hold at most 256 of the user"),
        ({"messages": [MESSAGE], "stop": ["z" * 257]}, 422, "each of at most 256 characters"),
        ({"messages": [MESSAGE], "stop": [str(i) for i in range(5)]}, 422, "at most 4 texts"),
        ({"messages": [MESSAGE], "top_p": 0.9}, 422, "top_k and top_p have no effect with temperature 0"),
        ({"messages": [MESSAGE], "temperature": 1, "top_p": 5}, 422, "top_p"),
        ({"messages": [MESSAGE], "temperature": 1, "seed": 1 << 64}, 422, "seed"),
        ({"messages": [MESSAGE], "temperature": 1, "seed": (1 << 64) - 1}, 200, ""),
        ({"messages": [MESSAGE], "temperature": 1e-320}, 200, ""),
        ({"messages": [MESSAGE], "n": True}, 422, "n must be 1"),
        ({"messages": [MESSAGE], "stream": 0}, 422, "stream must be true or false"),
        (
            {"messages": [MESSAGE], "stream_options": {"include_usage": "no"}},
            422,
            "include_usage must be true or false",
        ),
        ({"messages": [MESSAGE], "stream_options": {"usage": True}}, 422, "got 'usage'"),
        ({"messages": [MESSAGE], "logprobs": True}, 422, "{'logprobs': True}"),
        ({"messages": [MESSAGE], "n": None, "tools": [], "logprobs": False, "frequency_penalty": 0.0}, 200, ""),
        ({"messages": [MESSAGE], "response_format": {"type": "text"}, "tool_choice": None}, 200, ""),
        ({"messages": [MESSAGE | {"refusal": None, "annotations": []}]}, 200, ""),
    ],
)
def test_bad_requests_are_told_what_is_wrong_and_the_server_goes_on(place, body, status, told):
    reply = ask(place, "/v1/chat/completions", body)
    assert reply.status == status, reply.body
    if status != 200:
        assert told in reply.json["error"]["message"]
    assert ask(place, "/v1/chat/completions", {"messages": [MESSAGE], "max_tokens": 1}).status == 200


def test_a_client_that_hangs_up_ends_its_answer(place, client):
    body = json.dumps(
        {"messages": [MESSAGE], "stream": True, "max_tokens": 400, "temperature": 2.0, "seed": 1}
    ).encode()
    with connect(place) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert b"200" in connection.recv(100)
        assert waiting(place) == 1
    until(lambda: waiting(place) == 0, "the end of an answer that nobody hears")
    assert said(client, "yes", max_tokens=2).choices[0].message.content is not None


def waiting(place):
    """Answers that are made, and rows that wait."""
    lines = ask(place, "/metrics").body.decode().splitlines()
    return float(next(x for x in lines if x.startswith('polymodal_waiting_rows{model="stamps"}')).split()[1])


def test_a_query_is_refused(place):
    reply = ask(place, "/v1/chat/completions?model=stamps", {"messages": [MESSAGE]})
    assert (reply.status, "The query must be empty" in reply.body.decode()) == (422, True)


def test_what_was_mended_is_told(client):
    found = said(client, [CONTENT[0], {"type": "input_table", "input_table": {"colour": "purple"}}])
    assert found.repairs == [{"table": ["colour: unseen category"]}]
    assert not hasattr(said(client, CONTENT), "repairs")


def test_a_model_is_told_of_by_its_name(client):
    assert client.models.retrieve("stamps").id == "stamps"
    with pytest.raises(openai.NotFoundError, match="model must be one of"):
        client.models.retrieve("stamp")


def test_a_deadline_that_passes_in_a_stream_is_told_by_its_last_event(bundle, monkeypatch):
    step = Talk.step
    monkeypatch.setattr(Talk, "step", lambda self: (time.sleep(0.3), step(self))[1])
    with running(create_app(Settings.make(bundle[0], page=False, deadline=0.5))) as found:
        body = {"messages": [MESSAGE], "stream": True, "max_tokens": 480, "temperature": 2.0, "seed": 1}
        reply = ask(found, "/v1/chat/completions", body)
        assert reply.status == 200
        *pieces, last = [json.loads(line[6:]) for line in reply.body.decode().split("\n\n") if line]
        assert last["error"]["type"] == "deadline"
        assert all(piece["object"] == "chat.completion.chunk" for piece in pieces)


def test_who_finds_no_place_is_refused_before_anything_is_decoded(bundle, monkeypatch):
    with running(create_app(Settings.make(bundle[0], page=False, queue=1, deadline=30))) as found:
        body = {"messages": [MESSAGE], "stream": True, "max_tokens": 400, "temperature": 2.0, "seed": 1}
        with connect(found) as connection:
            sent = json.dumps(body).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(sent)}\r\n\r\n"
            connection.sendall(head.encode() + sent)
            assert b"200" in connection.recv(100)
            monkeypatch.setattr(Served, "decode", None)
            reply = ask(found, "/v1/chat/completions", {"messages": [MESSAGE]})
            assert (reply.status, reply.headers["retry-after"]) == (429, "1")


def test_a_model_whose_place_was_taken_is_freed(bundle, tmp_path):
    folder = Path(shutil.copytree(bundle[0], tmp_path / "stamps"))
    with running(create_app(Settings.make(folder, page=False, watch=0.05))) as found:
        assert ask(found, "/v1/chat/completions", {"messages": [MESSAGE]}).status == 200
        first = ask(found, "/v1/models").json["models"][0]["version"]
        old = [weakref.ref(x) for x in gc.get_objects() if type(x) is Speaker]
        (folder / "spec.json").write_text((folder / "spec.json").read_text() + " ")
        until(lambda: ask(found, "/v1/models").json["models"][0]["version"] != first, "the new version")
        until(
            lambda: gc.collect() is not None and sum(ref() is not None for ref in old) < len(old), "the old one's end"
        )
        until(lambda: "polymodal-speak" not in {thread.name for thread in threading.enumerate()}, "its thread's end")


@pytest.mark.slow
def test_streams_pass_the_front_of_several_workers(bundle):
    with Running(bundle[0], workers=2, page=False, watch=0, deadline=60) as server:
        with openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0) as client:
            pieces = list(said(client, "what is it", stream=True))
            whole = said(client, "what is it").choices[0]
        assert "".join(p.choices[0].delta.content or "" for p in pieces) == whole.message.content
        assert pieces[-1].choices[0].finish_reason == whole.finish_reason


def test_a_bundle_without_words_answers_no_chats(tmp_path):
    folder = tiny.fitted("table").save(tmp_path / "plain")
    with running(create_app(Settings.make(folder, page=False))) as found:
        reply = ask(found, "/v1/chat/completions", {"messages": [MESSAGE]})
        assert reply.status == 404
        assert "answers no chats" in reply.json["error"]["message"]


def test_rows_are_still_predicted_as_before(place, bundle):
    reply = ask(place, "/v1/predict", {"inputs": [{"question": "is it red", "x": 1.0}]})
    assert reply.status == 200
    expected = bundle[1].predict([{"question": "is it red", "x": 1.0}])[0]
    assert reply.json["predictions"][0]["answer"]["text"] == expected["answer"]["text"]


def test_the_description_names_what_is_said(place):
    document = ask(place, "/openapi.json").json
    assert "/v1/chat/completions" in document["paths"]
    keys = document["components"]["schemas"]["Prediction.stamps"]["properties"]["answer"]["properties"]
    assert set(keys) == {"text", "probability"}
    assert ask(place, "/v1/spec").json["outputs"][0]["keys"].keys() == {"text", "probability"}
