"""Bad clients and bad luck: each is answered in a few words or cut off, and everybody else is answered as before."""

import base64
import concurrent.futures
import errno
import http.client
import io
import json
import socket
import struct
import threading
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import tiny
from hosted import ask, connect, multipart, receive, running, statuses
from polymodal.server.app import create_app
from polymodal.server.logs import Log
from polymodal.server.models import Models
from polymodal.server.settings import Settings

MAX_BODY = 1 << 20
LEAKS = (b"Traceback", b'File "', b"site-packages", b"/polymodal/", b"root:", b"Error(")
"""What no answer may show."""


def base(content):
    return base64.b64encode(content).decode()


PICTURE = tiny.picture(1)
GOOD = {"inputs": {"text": "red apple pie", "x": 1.5, "colour": "red", "image": base(PICTURE)}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.fitted("text", "table", "image", "audio").save(tmp_path_factory.mktemp("bundles") / "tiny")


def settings(folder, **options):
    return Settings.make(folder, device="cpu", **{"max_body": MAX_BODY, "max_rows": 8, **options})


@pytest.fixture(scope="module")
def server(folder):
    with running(create_app(settings(folder))) as place:
        yield place, ask(place, "/v1/predict", GOOD).json["predictions"]


@pytest.fixture
def place(server):
    """A server that must answer afterwards what it answered before."""
    place, before = server
    yield place
    alive(place, before)


def alive(place, before=None):
    reply = ask(place, "/v1/predict", GOOD)
    assert reply.status == 200
    assert before is None or reply.json["predictions"] == before
    assert ask(place, "/readyz").status == 200


def refused(reply, status):
    """An answer with a status, the usual form, and nothing of the server's inside."""
    assert reply.status == status, reply.body
    assert reply.json["request_id"] == reply.headers["x-request-id"]
    assert reply.json["error"]["message"]
    assert not [leak for leak in LEAKS if leak in reply.body]
    return reply.json["error"]


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width, height, packed, *more):
    """A PNG of one bit per pixel with any content."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pieces = [chunk(b"IHDR", head), *more, chunk(b"IDAT", packed), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def zeros(size):
    """A zlib stream of so many megabytes of zeros, one block repeated."""
    packer = zlib.compressobj(9)
    start = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * (size - 1) + packer.flush()


def zipped():
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("zeros.png", bytes(50 << 20))
    return sink.getvalue()


JPEG = tiny.picture(2, kind="JPEG")
MEDIA = {
    "text named .png": ("image", b"I am a text, not a picture."),
    "a picture sent as sound": ("audio", PICTURE),
    "a sound sent as picture": ("image", tiny.sound(1)),
    "a JPEG cut off": ("image", JPEG[: len(JPEG) // 2]),
    "a PNG cut off": ("image", PICTURE[:-40]),
    "a WAV cut off": ("audio", tiny.sound(1)[:3000]),
    "a WAV that is its header": ("audio", tiny.sound(1)[:44]),
    "a zip bomb": ("image", zipped()),
    "a zip bomb as sound": ("audio", zipped()),
    "a pixel bomb of 50,000 x 50,000": ("image", png(50_000, 50_000, zeros(300))),
    "a pixel bomb of 2**31 pixels a side": ("image", png(2**31 - 1, 2**31 - 1, zeros(1))),
    "a bomb in a PNG's text": ("image", png(8, 8, zeros(1), *[chunk(b"zTXt", b"a\0\0" + zeros(100))] * 3)),
    "an SVG with an entity": ("image", b'<!DOCTYPE s [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>'),
    "PostScript": ("image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n"),
    "a playlist": ("audio", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
    "a list of files": ("audio", b"ffconcat version 1.0\nfile secret.wav\n"),
    "a session description": ("audio", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n"),
}


@pytest.mark.parametrize("name", MEDIA)
def test_media_that_are_not_what_they_seem(name, place):
    column, content = MEDIA[name]
    fault = refused(ask(place, "/v1/predict", {"inputs": {"x": 1, column: base(content)}}), 422)
    assert fault["where"] == f"inputs[0].{column}"
    body, kind = multipart((column, content, "picture.png" if column == "image" else "a.wav", None))
    refused(ask(place, "/v1/predict", body, Content_Type=kind), 422)
    reply = ask(place, "/v1/predict", {"inputs": {"x": 1, column: base(content)}, "strict": False})
    assert reply.status == 200
    assert [cell["column"] for cell in reply.json["broken"][0]] == [column]
    assert column in reply.json["absent"][0]


def test_a_media_type_that_lies(place):
    body, kind = multipart(("image", PICTURE, "a.png", "audio/wav"))
    refused(ask(place, "/v1/predict", body, Content_Type=kind), 415)


BODIES = {
    "nothing": (b"", 400),
    "no JSON": (b"inputs=1", 400),
    "half": (json.dumps(GOOD).encode()[:-9], 400),
    "NaN": (b'{"inputs": {"x": NaN}}', 400),
    "Infinity": (b'{"inputs": {"x": -Infinity}}', 400),
    "beyond floats": (b'{"inputs": {"x": 1e999}}', 400),
    "brackets": (b"[" * 100_000, 400),
    "closed brackets": (b"[" * 100_000 + b"]" * 100_000, 400),
    "deep objects": (b'{"inputs": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}", 400),
    "a long number": (b'{"inputs": {"x": ' + b"9" * 100_000 + b"}}", 400),
    "invalid UTF-8": (b'{"inputs": {"text": "\xff\xfe"}}', 400),
    "half a surrogate pair": (b'{"inputs": {"text": "\\ud800"}}', 400),
    "a null byte": (b'{"inputs": {"text": "a"}}\0', 400),
    "a key twice": (b'{"inputs": {"x": 1, "x": 2}}', 400),
    "inputs twice": (b'{"inputs": {"x": 1}, "inputs": {"x": 2}}', 400),
    "wrong name": (b'{"inputs": {"txet": "a"}}', 422),
    "the target": (b'{"inputs": {"label": "a"}}', 422),
    "wrong option": (b'{"inputs": {}, "exlpain": true}', 422),
    "a list as text": (b'{"inputs": {"text": ["a"]}}', 422),
    "an object as number": (b'{"inputs": {"x": {"a": 1}}}', 422),
    "words as number": (b'{"inputs": {"x": "twelve"}}', 422),
    "a number as picture": (b'{"inputs": {"image": 12}}', 422),
    "no base64": (b'{"inputs": {"image": "%%%"}}', 422),
    "a long wrong name": (json.dumps({"inputs": {"x" * 100_000: 1}}).encode(), 422),
    "too many rows": (json.dumps({"inputs": [{}] * 9}).encode(), 413),
    "many columns": (json.dumps({"inputs": {f"c{i}": 1 for i in range(20_000)}}).encode(), 422),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_cannot_be_answered(name, place):
    body, status = BODIES[name]
    reply = ask(place, "/v1/predict", body)
    if name == "a long number":  # what Python cannot read, or what is no finite number
        assert reply.status in (400, 422)
        status = reply.status
    fault = refused(reply, status)
    assert len(fault["message"]) < 1000


def test_odd_texts_are_texts(place):
    for text in (
        "a\0b",
        "\u202e\u0007",
        "𝔘𝔫𝔦",
        "<script>",
        "' OR 1=1 --",
        "{{7*7}}",
        "%s%n",
        "/etc/passwd",
        "x" * 100_000,
    ):
        assert ask(place, "/v1/predict", {"inputs": {"text": text}}).status == 200


FORMS = {
    "no boundary": (b"x", "multipart/form-data", 400),
    "another boundary": (multipart(("x", b"1", None, None))[0], "multipart/form-data; boundary=other", 400),
    "no end": (multipart(("x", b"1", None, None))[0][:-8], "multipart/form-data; boundary=edge", 400),
    "no name": (b"--edge\r\n\r\nx\r\n--edge--\r\n", "multipart/form-data; boundary=edge", 400),
    "a long boundary": (b"x", "multipart/form-data; boundary=" + "x" * 5000, 400),
    "a thousand parts": (*multipart(*[("x", b"1", None, None)] * 1000), 413),
    "a header without end": (b"--edge\r\nA" + b"a" * 500_000, "multipart/form-data; boundary=edge", 400),
    "bytes as number": (*multipart(("x", b"\xff\xfe", None, None)), 422),
    "unequal rows": (*multipart(("x", b"1", None, None), ("x", b"2", None, None), ("colour", b"r", None, None)), 422),
    "a form as JSON": (multipart(("x", b"1", None, None))[0], "application/json", 400),
    "another type": (b"x=1", "application/x-www-form-urlencoded", 415),
    "pickle": (b"\x80\x04K\x01.", "application/octet-stream", 415),
    "no type": (b"{}", "", 415),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_cannot_be_read(name, place):
    body, kind, status = FORMS[name]
    refused(ask(place, "/v1/predict", body, Content_Type=kind), status)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/predict", 405), ("DELETE", "/v1/predict", 405), ("POST", "/v1/spec", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v1/card?model=other", 404), ("GET", "/../../etc/passwd", 404), ("GET", "/%2e%2e/%2e%2e/etc", 404),
        ("GET", "/static/..%2f..%2fapp.py", 404), ("GET", "/static/%00", 404), ("GET", "//etc/passwd", 404),
        ("GET", "/static/../../app.py", 404), ("GET", "/v1/card?model=../../etc", 404), ("GET", "/v1/predict/%ff", 404),
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere(method, path, status, place):
    refused(ask(place, path, method=method), status)


def test_no_file_of_the_server_is_read(place, tmp_path):
    (tmp_path / "there.png").write_bytes(PICTURE)
    there = str(tmp_path / "there.png")
    cells = [
        there,
        f"file://{there}",
        "/etc/passwd",
        "../../etc/passwd",
        "~/x.png",
        f"FILE://{there}",
        "fd:0",
        "pipe:0",
    ]
    cells += [{"path": there}, {"bytes": base(PICTURE)}, {"path": there, "bytes": None}, {"file": there}, [there]]
    cells += ["http://127.0.0.1:1/x.png", f"data:image/png,{there}", f"local://{there}", "s3://bucket/key"]
    for cell in cells:
        fault = refused(ask(place, "/v1/predict", {"inputs": {"x": 1, "image": cell}}), 422)
        assert fault["where"].startswith("inputs[0].image")
        body, kind = multipart(("inputs", json.dumps({"image": cell}).encode(), None, None))
        refused(ask(place, "/v1/predict", body, Content_Type=kind), 422)
    body, kind = multipart(("image", there.encode(), None, None))
    refused(ask(place, "/v1/predict", body, Content_Type=kind), 422)
    body, kind = multipart(("image", b"", there, None))  # a file's name is just a name
    assert "image" in ask(place, "/v1/predict", body, Content_Type=kind).json["absent"][0]


def test_a_url_of_a_named_host_inside_the_network_is_not_fetched(folder):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        host = f"127.0.0.1:{trap.getsockname()[1]}"
        with running(create_app(settings(folder, allow_hosts=(host,)))) as place:
            row = {"x": 1, "image": f"http://{host}/secret.png"}
            fault = refused(ask(place, "/v1/predict", {"inputs": row}), 422)
            assert "public addresses" in fault["message"]
            assert "secret" not in fault["message"]
            reply = ask(place, "/v1/predict", {"inputs": [row, row], "strict": False})
            assert [cells[0]["column"] for cells in reply.json["broken"]] == ["image", "image"]
            refused(ask(place, "/v1/predict", {"inputs": [row, row]}), 422)
            alive(place)
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


def raw(place, *pieces):
    with connect(place) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:  # it has answered and closed
                break
        return receive(connection)


HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"


def test_a_body_of_a_gigabyte_is_refused_by_its_length(place):
    answer = raw(place, HEAD + b"Content-Length: 1073741824\r\n\r\n", b"x" * 1000)
    assert statuses(answer) == [413]
    answer = raw(place, HEAD + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n")
    assert statuses(answer) in ([400], [413])
    answer = raw(place, HEAD + b"Content-Length: -1\r\n\r\n")
    assert statuses(answer) == [400]


def test_an_endless_body_is_refused_when_it_is_too_long(place):
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert statuses(raw(place, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[piece] * 100)) == [413]


def test_a_packed_body_is_never_unpacked(place):
    for packing in ("gzip", "deflate", "br", "zstd", "GZIP, identity"):
        packed = zlib.compress(bytes(100 << 10), wbits=31)
        refused(ask(place, "/v1/predict", packed, Content_Encoding=packing), 415)


def test_heads_that_are_no_http(place):
    assert statuses(raw(place, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64))) in ([], [400])
    assert statuses(raw(place, b"GET / HTTP/9.9\r\n\r\n")) in ([], [400], [505])
    assert statuses(raw(place, HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}")) in ([], [400])
    assert statuses(raw(place, b"GET /healthz HTTP/1.1\r\nA: " + b"a" * 200_000 + b"\r\n\r\n")) in ([], [400], [431])
    many = b"".join(b"h%d: x\r\n" % i for i in range(20_000))
    assert statuses(raw(place, b"GET /healthz HTTP/1.1\r\n" + many + b"\r\n")) in ([], [400], [431])
    assert statuses(raw(place, b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n")) in ([], [400], [414], [431])


def test_a_request_id_cannot_bring_headers_or_lines_of_log(place):
    for name in ("a b", "x" * 65, "a\tb", "ä".encode().decode("latin-1"), '"}', ""):
        reply = ask(place, "/healthz", X_Request_Id=name)
        assert reply.headers["x-request-id"] != name
    assert ask(place, "/healthz", X_Request_Id="My-id_1.2").headers["x-request-id"] == "My-id_1.2"


def test_requests_in_a_pipe_are_answered_in_their_order(place):
    heads = [b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: n%d\r\n" % i for i in range(4)]
    body = json.dumps(GOOD).encode()
    post = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Request-Id: n9\r\n"
    post += b"Content-Length: %d\r\n\r\n" % len(body) + body
    answer = raw(
        place, b"\r\n".join(heads[:2]) + b"\r\n" + post + heads[2] + b"\r\n" + heads[3] + b"Connection: close\r\n\r\n"
    )
    assert statuses(answer) == [200] * 5
    found = [line.split(b": ")[1] for line in answer.lower().split(b"\r\n") if line.startswith(b"x-request-id")]
    assert found == [b"n0", b"n1", b"n9", b"n2", b"n3"]


def test_a_slow_client_is_given_up_and_others_are_answered_meanwhile(folder):
    with running(create_app(settings(folder, deadline=2.0))) as place, connect(place) as slow:
        slow.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        slow.settimeout(0.05)
        answer, answered = b"", 0
        for _ in range(400):
            try:
                slow.sendall(b"{")
                answer += slow.recv(65536)
            except TimeoutError:
                alive(place)
                answered += 1
            except OSError:
                break
            if b"request_id" in answer:
                break
        assert statuses(answer) == [408]
        assert answered
        alive(place)


def test_clients_that_hang_up(place):
    body = json.dumps(GOOD).encode()
    head = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
    for sent in (b"", head[:20], head, head + body[:100], head + body):
        for rude in (False, True):
            for _ in range(5):
                with connect(place) as connection:
                    if rude:  # a reset instead of an end
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.sendall(sent)
    metrics = ask(place, "/metrics").body.decode()
    assert "polymodal" in metrics


def test_five_hundred_connections_at_once(place):
    body = json.dumps({"inputs": {"text": "red", "x": 1}}).encode()
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    idle = [connect(place) for _ in range(100)]
    busy = [connect(place) for _ in range(400)]
    try:
        for connection in busy:
            connection.sendall(request)
        assert ask(place, "/healthz").status == 200
        found = [statuses(receive(connection)) for connection in busy]
        alive(place)
    finally:
        for connection in idle + busy:
            connection.close()
    assert {status for answer in found for status in answer} <= {200, 429, 503}
    assert all(len(answer) == 1 for answer in found)
    assert [200] in found


def test_more_rows_than_may_wait_are_turned_away(folder):
    with (
        running(create_app(settings(folder, queue=8, batch=2))) as place,
        concurrent.futures.ThreadPoolExecutor(24) as pool,
    ):
        replies = list(pool.map(lambda _: ask(place, "/v1/predict", {"inputs": [GOOD["inputs"]] * 4}), range(48)))
        assert {reply.status for reply in replies} <= {200, 429}
        assert 200 in {reply.status for reply in replies}
        for reply in replies:
            if reply.status == 429:
                assert int(reply.headers["retry-after"]) >= 1
                refused(reply, 429)
        alive(place)


class Full(io.StringIO):
    """A log on a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_for_the_log_stops_nothing(folder, capfd):
    dropped = threading.Event()
    log = Log(Full(), on_drop=dropped.set)
    with running(create_app(settings(folder), log=log)) as place:
        alive(place)
        refused(ask(place, "/v1/predict", b"{"), 400)
    assert dropped.is_set()
    assert log.dropped >= 2


def test_a_fault_of_our_own_is_told_without_its_cause(folder, monkeypatch):
    options, sink = settings(folder), io.StringIO()
    models = Models(options)

    async def broken(*args, **kwargs):
        raise RuntimeError("a secret of the server")

    with running(create_app(options, models, log=Log(sink))) as place:
        with monkeypatch.context() as patch:
            patch.setattr(models.find(), "predict", broken)
            fault = refused(ask(place, "/v1/predict", GOOD), 500)
        assert "secret" not in fault["message"]
        alive(place)
    assert "RuntimeError" in sink.getvalue()


def coloured(i):
    """One of a thousand pictures that no other is like."""
    pixels = np.zeros((20, 24, 3), np.uint8)
    pixels[:, : 1 + i % 24] = (i % 251, (i * 7) % 253, (i * 13) % 247)
    pixels[i % 20 :] += np.uint8(i % 97)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.slow
def test_a_thousand_pictures_of_sixteen_clients_each_get_their_own_answer(tmp_path):
    bundle = tiny.fitted("image", "text", outputs={"price": "regress", "label": "classify"})
    folder = bundle.save(tmp_path / "tiny")
    rows = [{"image": coloured(i), **({} if i % 3 else {"text": f"red apple {i}"})} for i in range(1000)]
    expected = np.array([row["price"]["value"] for row in bundle.predict(rows)])
    near = np.abs(expected[:, None] - expected[None]) < 1e-5
    assert near.sum() < 1.2 * len(rows)  # so that an answer to another row would be seen

    def client(number):
        found = {}
        connection = http.client.HTTPConnection(*place, timeout=60)
        for i in range(number, len(rows), 16):
            parts = [
                (name, cell if name == "image" else cell.encode(), "f" if name == "image" else None, None)
                for name, cell in rows[i].items()
            ]
            body, kind = multipart(*parts)
            connection.request("POST", "/v1/predict", body, {"Content-Type": kind, "X-Request-Id": f"r{i}"})
            reply = connection.getresponse()
            answer = json.loads(reply.read())
            assert (reply.status, answer["request_id"]) == (200, f"r{i}")
            assert answer["absent"] == [["text"] if i % 3 else []]
            found[i] = answer["predictions"][0]["price"]["value"]
        connection.close()
        return found

    app = create_app(settings(folder, deadline=60), log=Log(io.StringIO()))
    with running(app) as place, concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = {i: value for found in pool.map(client, range(16)) for i, value in found.items()}
    assert len(answers) == len(rows)
    assert np.abs(np.array([answers[i] for i in range(len(rows))]) - expected).max() < 1e-5
