"""Bodies of requests become rows, or say by its path what is wrong."""

import asyncio
import base64
import json
import threading

import pytest

import polymodal as pm
import tiny
from polymodal.server import cells, media, requests, strict
from polymodal.server.errors import MediaTypeError, Refused, describe
from polymodal.server.multipart import read_parts
from polymodal.server.requests import Intake
from polymodal.server.strict import DEPTH, parse_json
from radar import Radar
from stage import SPEC, settings

PICTURE, SOUND = tiny.picture(1), tiny.sound(1)
BASE64 = base64.b64encode(PICTURE).decode()


def read(body, kind="application/json", spec=SPEC, **options):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return asyncio.run(Intake(spec, settings(**options)).read(body, kind))


def rows(*inputs, **options):
    return read({"inputs": list(inputs)}, **options).rows


def fault(body, kind="application/json", **options):
    with pytest.raises((Refused, pm.DataError)) as caught:
        read(body, kind, **options)
    return describe(caught.value)


def form(*parts, boundary="XX"):
    """A multipart body from (name, content, filename or None, type or None)."""
    found = b""
    for name, content, *rest in parts:
        filename, kind = (*rest, None, None)[:2]
        head = f'Content-Disposition: form-data; name="{name}"'
        head += f'; filename="{filename}"' if filename is not None else ""
        head += f"\r\nContent-Type: {kind}" if kind else ""
        content = content if isinstance(content, bytes) else content.encode()
        found += f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + b"\r\n"
    return found + f"--{boundary}--\r\n".encode()


FORM = "multipart/form-data; boundary=XX"


def test_a_row_or_several_become_rows():
    one = {"words": "two boats", "width": 3, "colour": None}
    assert rows(one) == [one]
    assert read({"inputs": one}).rows == [one]
    assert rows({}, one) == [{}, one]


def test_options_are_read_and_have_defaults():
    asked = read({"inputs": {}})
    assert (asked.explain, asked.strict) == (False, True)
    asked = read({"inputs": {}, "explain": True, "strict": False})
    assert (asked.explain, asked.strict) == (True, False)


def test_an_input_may_be_given_by_its_name_its_column_or_as_an_object_of_columns():
    assert rows({"caption": "a"}) == rows({"words": "a"}) == [{"words": "a"}]
    assert rows({"table": {"width": 1, "colour": "red"}}) == [{"width": 1, "colour": "red"}]
    assert rows({"table": None, "width": 2}) == [{"width": 2}]


@pytest.mark.parametrize(
    "text",
    [
        BASE64,
        BASE64.rstrip("="),
        "\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
        f"data:image/png;base64,{BASE64}",
        f"data:;base64,{BASE64}",
        f"DATA:application/octet-stream;base64,{BASE64}",
        f"data:image/png;name=x;base64,{BASE64.replace('+', '%2B')}",
        "data:image/png," + "".join(f"%{byte:02x}" for byte in PICTURE),
    ],
)
def test_media_come_as_base64_or_data_url(text):
    assert rows({"image": text}) == [{"image": PICTURE}]


def test_blank_media_are_absent():
    assert rows({"image": ""}, {"image": "  "}, {"image": "data:,"}, {"image": None}) == 4 * [{"image": None}]


@pytest.mark.parametrize(
    ("row", "where", "words"),
    [
        ({"widht": 1}, "inputs[0].widht", "Did you mean 'width'?"),
        ({"table": {"hight": 1}}, "inputs[0].hight", "must have columns of"),
        ({"verdict": "a"}, "inputs[0].verdict", "is what the model predicts"),
        ({"label": "a"}, "inputs[0].label", "is what the model predicts"),
        ({"image": 7}, "inputs[0].image", "must be image as base64 or data URL, got 7."),
        ({"image": ["x"]}, "inputs[0].image", "got a list"),
        ({"image": {"file": "f"}}, "inputs[0].image", "must name a part"),
        ({"image": {"file": []}}, "inputs[0].image", "must name a part"),
        ({"image": {"path": "/etc/passwd"}}, "inputs[0].image", "got an object"),
        ({"image": "photos/cat.jpg"}, "inputs[0].image", "base64"),
        ({"image": "file:///etc/passwd"}, "inputs[0].image", "fetches none"),
        ({"image": "http://127.0.0.1/x.png"}, "inputs[0].image", "fetches none"),
        ({"image": "data:image/png"}, "inputs[0].image", "comma"),
        ({"image": "Ä" * 8}, "inputs[0].image", "base64"),
        ({"width": [1]}, "inputs[0].width", "must be a number, got a list"),
        ({"words": {"a": 1}}, "inputs[0].words", "must be a text, got an object"),
        ({"table": 3}, "inputs[0].table", "must be an object of"),
        ({"table": {"width": 1}, "width": 1}, "inputs[0].width", "once"),
        ({"caption": "a", "words": "b"}, "inputs[0].words", "once"),
        (3, "inputs[0]", "must be a row"),
    ],
)
def test_a_wrong_row_is_named_by_its_path(row, where, words):
    found = fault({"inputs": [row]})
    assert (found.status, found.kind) == (422, "unprocessable")
    assert words in found.message
    assert found.where == where or found.where == where.replace("hight", "table.hight")


def test_the_row_is_in_the_path():
    assert fault({"inputs": [{}, {}, {"image": "?"}]}).where == "inputs[2].image"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "an object with 'inputs'"),
        ("x", "an object with 'inputs'"),
        ({}, "got null"),
        ({"inputs": []}, "an empty list"),
        ({"inputs": 1}, "got 1"),
        ({"inputs": {}, "explian": True}, "Did you mean 'explain'?"),
        ({"inputs": {}, "strict": "no"}, "strict must be true or false"),
        ({"inputs": {}, "explain": 1}, "explain must be true or false"),
    ],
)
def test_a_wrong_document_is_told(body, words):
    found = fault(body)
    assert found.status == 422
    assert words in found.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"inputs": {"width": NaN}}',
        b'{"inputs": {"width": -Infinity}}',
        b'{"inputs": {"width": 1e999}}',
        b'{"inputs": {"width": ' + b"9" * 5000 + b"}}",
        b'{"inputs": {"width": 1, "width": 2}}',
        b'{"inputs": {}, "inputs": {}}',
        b'{"inputs": {"words": "\xff"}}',
        b'{"inputs": {"words": "\\ud800"}}',
        '{"inputs": {}}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1),
    ],
    ids=range(14),
)
def test_what_is_no_json_is_a_bad_request(body):
    found = fault(body)
    assert (found.status, found.kind) == (400, "bad_request")


def test_json_may_be_as_deep_as_the_limit_and_have_characters_of_two_halves():
    deep = parse_json(b"[" * DEPTH + b"]" * DEPTH)
    assert json.dumps(deep).count("[") == DEPTH
    assert parse_json(b'"\\ud83d\\ude00 \\u00e4"') == "😀 ä"


def test_json_holds_so_many_values_at_most(monkeypatch):
    monkeypatch.setattr(strict, "VALUES", 100)
    assert len(parse_json(b"[" + b"1," * 98 + b"1]")) == 99
    for many in (b"[" + b"1," * 100 + b"1]", b"[" + b"[]," * 50 + b"[]]", b"[" * 101):
        assert fault(many).status == 413


def test_a_data_url_holds_so_many_escapes_at_most(monkeypatch):
    monkeypatch.setattr(media, "ESCAPES", 4)
    assert media.decode_text("data:image/png,%41%42%43%44") == ("image/png", b"ABCD")
    assert media.decode_text("data:image/png;base64,QUJDRA%3D%3D") == ("image/png", b"ABCD")
    with pytest.raises(ValueError, match="escaped"):
        media.decode_text("data:image/png,%41%42%43%44%45")


def test_a_part_of_a_group_is_told_without_its_content():
    found = fault(form(("table", '{"width": 1}')), FORM)
    assert (found.status, found.where) == (422, "inputs[0].table")
    assert "Part(" not in found.message


def test_many_equal_keys_are_refused_quickly():
    names = ",".join(f'"{i}":0' for i in range(200_000))
    assert "twice" in fault(f'{{{names},"0":1}}'.encode()).message


def test_a_long_wrong_name_is_answered_quickly_and_shortly():
    found = fault({"inputs": {"x" * 1_000_000: 1}})
    assert found.status == 422
    assert len(found.message) < 400


def test_max_rows_limits_rows():
    assert len(rows({}, {}, max_rows=2)) == 2
    found = fault({"inputs": [{}, {}, {}]}, max_rows=2)
    assert (found.status, found.kind, found.where) == (413, "too_large", "inputs")
    assert fault(form(*3 * [("width", "1")]), FORM, max_rows=2).status == 413
    assert fault(form(*40 * [("width", "1")]), FORM, max_rows=1).status == 413


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_other_content_types_are_refused(kind):
    found = fault(b"x=1", kind)
    assert (found.status, found.kind) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("column", "media_type", "fits"),
    [
        ("image", "image/x-unknown", True),
        ("image", "application/octet-stream", True),
        ("image", "audio/wav", False),
        ("image", "video/mp4", False),
        ("sound", "audio/wav", True),
        ("sound", "video/mp4", True),
        ("sound", "image/png", False),
    ],
)
def test_media_that_say_they_are_of_another_kind_are_refused(column, media_type, fits):
    body = {"inputs": {column: f"data:{media_type};base64,{BASE64}"}}
    parts = form((column, PICTURE, "x.bin", media_type))
    if fits:
        assert read(body).rows == read(parts, FORM).rows == [{column: PICTURE}]
    else:
        for found in (fault(body), fault(parts, FORM)):
            assert (found.status, found.where) == (415, f"inputs[0].{column}")


def test_without_strict_a_broken_cell_is_absent_and_listed():
    asked = read({"inputs": [{}, {"image": "??", "width": 1}], "strict": False})
    assert asked.rows == [{}, {"image": None, "width": 1}]
    assert asked.broken[0] == []
    assert asked.broken[1][0] | {"reason": ""} == {"input": "image", "column": "image", "reason": ""}
    assert asked.broken[1][0]["reason"].startswith("the cell must be image")
    lying = read({"inputs": {"sound": f"data:image/png;base64,{BASE64}"}, "strict": False})
    assert lying.broken[0][0]["column"] == "sound"


def test_a_form_gives_a_part_per_cell():
    body = form(
        ("words", "zwei Böte"), ("width", "3.5"), ("image", PICTURE, "x.png", "image/png"), ("explain", "true"),
        ("sound", SOUND, "x.wav"), ("strict", "no"),
    )  # fmt: skip
    asked = read(body, FORM)
    assert asked.rows == [{"words": "zwei Böte", "width": "3.5", "image": PICTURE, "sound": SOUND}]
    assert (asked.explain, asked.strict) == (True, False)


def test_a_form_takes_media_as_text_and_text_as_file():
    body = form(("image", BASE64), ("caption", b"hello", "t.txt", "text/plain"))
    assert read(body, FORM).rows == [{"image": PICTURE, "words": "hello"}]
    assert read(form(("image", PICTURE, None, "image/png")), FORM).rows == [{"image": PICTURE}]


def test_a_form_of_several_rows_repeats_every_part():
    body = form(("width", "1"), ("colour", "red"), ("width", "2"), ("colour", ""))
    assert read(body, FORM).rows == [{"width": "1", "colour": "red"}, {"width": "2", "colour": None}]
    found = fault(form(("width", "1"), ("colour", "red"), ("width", "2")), FORM)
    assert (found.status, found.where) == (422, "inputs")
    assert "a part for each row" in found.message


def test_what_a_browser_sends_for_blank_fields_is_absent():
    body = form(("width", ""), ("image", b"", "", "application/octet-stream"), ("words", "a"))
    assert read(body, FORM).rows == [{"width": None, "image": None, "words": "a"}]


def test_a_form_may_hold_json_with_files_beside_it():
    inputs = [{"image": {"file": "first"}, "width": 1}, {"table": {"width": 2}, "sound": {"file": "second"}}]
    body = form(
        ("inputs", json.dumps(inputs)), ("first", PICTURE, "a.png"), ("second", SOUND, "b.wav"), ("explain", "1")
    )
    asked = read(body, FORM)
    assert asked.rows == [{"image": PICTURE, "width": 1}, {"width": 2, "sound": SOUND}]
    assert asked.explain


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ([], 422, "an empty list"),
        ([("widht", "1")], 422, "Did you mean 'width'?"),
        ([("verdict", "a")], 422, "is what the model predicts"),
        ([("explain", "perhaps"), ("width", "1")], 422, "explain must be true or false"),
        ([("strict", "1"), ("strict", "1"), ("width", "1")], 422, "strict must be one part"),
        ([("words", b"\xff\xfe", "x.txt")], 422, "text in UTF-8"),
        ([("words", PICTURE, "x.png", "image/png")], 415, "image/png"),
        ([("inputs", "{")], 400, "JSON"),
        ([("inputs", "{}"), ("f", PICTURE, "x")], 422, "none names"),
        ([("inputs", '{"image": {"file": "g"}}'), ("f", PICTURE, "x")], 422, "none names"),
        ([("inputs", '{"image": {"file": "g"}}')], 422, "must name a part"),
        ([("inputs", '{"image": {"file": "f"}}'), ("f", PICTURE, "x"), ("f", PICTURE, "y")], 422, "different names"),
    ],
)
def test_a_wrong_form_is_told(parts, status, words):
    found = fault(form(*parts), FORM)
    assert found.status == status
    assert words in found.message


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (form(("width", "1")), "multipart/form-data"),
        (form(("width", "1")), "multipart/form-data; boundary="),
        (form(("width", "1")), f"multipart/form-data; boundary={'x' * 1000}"),
        (form(("width", "1"))[:-6], FORM),
        (form(("width", "1")), "multipart/form-data; boundary=YY"),
        (b"", FORM),
        (b"hello", FORM),
        (b"--XX\r\nContent-Type: text/plain\r\n\r\n1\r\n--XX--\r\n", FORM),
        (b"--XX\r\nContent-Disposition: attachment; name=width\r\n\r\n1\r\n--XX--\r\n", FORM),
        (b"--XX\r\n" + b"A: b\r\n" * 100 + b"\r\n1\r\n--XX--\r\n", FORM),
        (b"--XX\r\nA: " + b"b" * 100_000 + b"\r\n\r\n1\r\n--XX--\r\n", FORM),
    ],
    ids=range(11),
)
def test_what_is_no_form_is_a_bad_request(body, kind):
    assert fault(body, kind).status == 400


def test_names_of_parts_may_be_of_any_alphabet():
    (part,) = read_parts(form(("größe", "1")), FORM, 9)
    assert part.name == "größe"


def test_a_large_body_is_read_beside_the_event_loop(monkeypatch):
    seen = []
    parse = Intake.parse
    monkeypatch.setattr(Intake, "parse", lambda *a: (seen.append(threading.current_thread()), parse(*a))[1])
    read({"inputs": {"words": "a"}})
    read({"inputs": {"words": "a" * requests.SMALL}})
    assert [thread is threading.main_thread() for thread in seen] == [True, False]


def test_cells_of_a_modality_of_ones_own_are_any_json():
    spec = pm.Spec(inputs={"radar": Radar()}, outputs={"y": {"type": "classify"}}, dim=8)
    sweep = [[1.0, 0.5, 2.0]]
    assert rows({"radar": sweep}, spec=spec) == [{"radar": sweep}]
    assert read(form(("radar", json.dumps(sweep))), FORM, spec=spec).rows == [{"radar": sweep}]


def test_allow_hosts_lets_media_be_fetched(monkeypatch):
    asked_for = []

    async def fetch(url, given):
        asked_for.append((url, given.allow_hosts))
        await asyncio.sleep(0)
        if "gone" in url:
            raise pm.DataError("a.example must answer with the file, got status 404.")
        return PICTURE

    monkeypatch.setattr(cells, "fetch", fetch)
    url, allow = "https://a.example/x.png", {"allow_hosts": ("a.example",)}
    assert rows({"image": url}, {"image": url}, **allow) == 2 * [{"image": PICTURE}]
    assert asked_for[0] == (url, ("a.example",))
    found = fault({"inputs": [{}, {"image": "https://a.example/gone"}]}, **allow)
    assert (found.status, found.where) == (422, "inputs[1].image")
    asked = read({"inputs": {"image": "https://a.example/gone"}, "strict": False}, **allow)
    assert asked.rows == [{"image": None}]
    assert asked.broken[0][0]["reason"].startswith("a.example must answer")
    assert fault({"inputs": 30 * [{"image": url}]}, max_body=20 * len(PICTURE), **allow).status == 413


def test_a_media_type_error_is_a_data_error():
    assert issubclass(MediaTypeError, pm.DataError)
