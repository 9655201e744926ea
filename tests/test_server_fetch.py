"""Media by URL: only from named hosts, never from inside the network, never more than allowed."""

import asyncio
import gzip
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from polymodal.errors import DataError
from polymodal.server import fetch as module
from polymodal.server.fetch import fetch, is_public
from polymodal.server.settings import Settings

BODY = bytes(range(256)) * 8


def settings(*hosts, **more):
    return Settings.make("m=there", allow_hosts=hosts, **more)


def anywhere(address):
    return True


def get(url, *hosts, allowed=anywhere, **more):
    return asyncio.run(fetch(url, settings(*hosts, **more), allowed))


class Files(BaseHTTPRequestHandler):
    """Answers that are good, or not."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        getattr(self, "_" + re.split("[/?]", self.path)[1])()

    def answer(self, status=200, body=BODY, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self):
        self.answer(Set_Cookie="a=b")

    def _gone(self):
        self.answer(404)

    def _redirect(self):
        self.answer(302, b"", Location="/file")

    def _packed(self):
        self.answer(body=gzip.compress(bytes(100_000)), Content_Encoding="gzip")

    def _lies(self):
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 30))
        self.end_headers()

    def _cut(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"short")
        self.close_connection = True

    def _endless(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"1000\r\n" + bytes(4096) + b"\r\n")
        except OSError:
            self.server.hung_up.set()

    def _silent(self):
        self.server.release.wait(20)
        self.close_connection = True

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        server.daemon_threads, server.asked = True, []
        server.hung_up, server.release = threading.Event(), threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def host(server):
    server.asked.clear()
    return f"127.0.0.1:{server.server_port}"


INSIDE = (
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "192.0.2.1",
    "198.18.0.1", "192.88.99.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1",
    "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "2002:7f00:1::1", "2002:808:808::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "localhost",
)  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_that_are_not_of_the_public_internet(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001::8a"])
def test_public_addresses(address):
    assert is_public(address)


def test_a_file_of_a_named_host_is_fetched(host, server):
    assert get(f"http://{host}/file?x=1", host) == BODY
    assert get(f"HTTP://{host}/file", host.upper()) == BODY
    [(path, headers), _] = server.asked
    assert path == "/file?x=1"
    assert headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in headers


def test_a_host_needs_its_port_where_it_is_not_the_usual_one(host, server):
    with pytest.raises(DataError, match=r"on a host that this server fetches from, got 127.0.0.1"):
        get(f"http://{host}/file", "127.0.0.1")
    assert not server.asked


@pytest.mark.parametrize("hosts", [(), ("other.example",), ("example",), ("sub.example.org",)])
def test_other_hosts_are_refused(hosts, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)  # not even looked up
    with pytest.raises(DataError, match=r"on a host that this server fetches from, got example.org"):
        get("http://example.org/secret-path", *hosts)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://good.example/x", "//good.example/x", "good.example/x", "/etc/passwd", "", "http:",
        "http:///x", "http://", "gopher://good.example", "data:text/plain,x", "http://good.example:99999/", "http://[::1",
        "http://good.example:0/", "http://good.example\\@evil.example/",
    ],
)  # fmt: skip
def test_what_is_no_web_address_is_refused(url):
    with pytest.raises(DataError, match="must start with http:// or https:// and a host"):
        get(url, "good.example")


@pytest.mark.parametrize(
    "url",
    [
        "http://good.example@evil.example/", "http://good.example:80@evil.example/", "http://evil.example#good.example",
        "http://evil.example?good.example", "http://good.example.evil.example/", "http://good.example./",
        "http://evil.example/good.example", "http://good.example%2eevil.example/", "http://user:secret@good.example/",
    ],
)  # fmt: skip
def test_tricks_with_names_are_refused(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    with pytest.raises(DataError) as caught:
        get(url, "good.example")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]", "127.1", "2130706433", "0x7f000001"])
def test_this_machine_is_refused_even_if_it_is_named(name, server):
    server.asked.clear()
    url = f"{name}:{server.server_port}"
    with pytest.raises(DataError, match=r"public addresses only|reachable"):
        get(f"http://{url}/file", url, allowed=is_public)
    assert not server.asked


def answers(monkeypatch, *rounds):
    """Let the name server give other addresses each time it is asked; returns the names it was asked for."""
    asked, real = [], socket.getaddrinfo

    def look_up(host, port, *args, **kwargs):
        if host != "good.example":
            return real(host, port, *args, **kwargs)
        asked.append(host)
        found = rounds[min(len(asked), len(rounds)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_one_private_address_among_public_ones_is_enough(monkeypatch):
    answers(monkeypatch, ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(DataError, match=r"good.example must have public addresses only"):
        get("http://good.example/x", "good.example", allowed=is_public)


def test_a_name_is_looked_up_once_and_the_connection_goes_where_was_checked(monkeypatch, server):
    asked, checked = answers(monkeypatch, ["127.0.0.1"], ["127.0.0.2"]), []
    place = f"good.example:{server.server_port}"
    body = get(f"http://{place}/file", place, allowed=lambda address: not checked.append(address))
    assert (body, asked, checked) == (BODY, ["good.example"], ["127.0.0.1"])
    assert server.asked[-1][1]["Host"] == place


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("redirect", "a redirect, which is not followed"), ("gone", "status 404"), ("packed", "packed by 'gzip'"),
        ("lies", "at most 4096 bytes"), ("endless", "at most 4096 bytes"), ("cut", "must be reachable"),
    ],
)  # fmt: skip
def test_answers_that_are_no_file(path, why, host, server):
    with pytest.raises(DataError, match=why) as caught:
        get(f"http://{host}/{path}/secret", host, max_body=4096)
    assert "secret" not in str(caught.value)
    assert len(server.asked) == 1
    if path == "endless":
        assert server.hung_up.wait(10)


def test_a_file_as_large_as_allowed_is_taken(host):
    assert len(get(f"http://{host}/file", host, max_body=2048)) == 2048
    with pytest.raises(DataError, match="at most 2047 bytes"):
        get(f"http://{host}/file", host, max_body=2047)


def test_a_silent_host_is_given_up(host):
    with pytest.raises(DataError, match=r"must answer within 0.2 s"):
        get(f"http://{host}/silent", host, deadline=0.2)


def test_a_host_that_is_not_there(monkeypatch):
    def look_up(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(DataError, match=r"good.example must be reachable, got gaierror"):
        get("https://good.example/secret", "good.example")


def test_no_proxy_of_the_environment_is_used(host, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get(f"http://{host}/file", host) == BODY


def test_connections_are_checked_unless_told_otherwise():
    assert fetch.__defaults__ == (module.is_public,)
