"""The load counts what happens: answers, losses, mistakes, and time from when a request was planned."""

import asyncio
import json
import math
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

import polymodal as pm
from polymodal.trials.agreement import Reference
from polymodal.trials.ask import Request
from polymodal.trials.load import run_load

ANSWER = {"label": {"class": "a", "probability": 0.75, "probabilities": {"a": 0.75, "b": 0.25}}}
REQUESTS = [Request(json.dumps({"row": i}).encode(), "application/json", i) for i in range(3)]


@asynccontextmanager
async def serving(answer):
    """A server of one path that answers by a coroutine function; yields its URL."""
    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


def loaded(answer, requests=REQUESTS, **options):
    async def run():
        async with serving(answer) as url:
            return await run_load(url, requests, **options)

    return asyncio.run(run())


async def right(request):
    return web.json_response({"predictions": [ANSWER]})


def test_every_answer_is_counted_and_compared():
    report = loaded(right, clients=2, count=7, expect=Reference([ANSWER] * 3, 1e-3))
    assert (report.requests, report.statuses, report.rows) == (7, {200: 7}, 7)
    assert (report.lost, report.wrong, report.difference) == (0, 0, 0.0)
    assert report.ok
    assert report.sent == 7 * len(REQUESTS[0].body)
    assert report.received > 7 * 50
    assert 0 < report.latency["p50"] <= report.latency["p99"] <= report.latency["max"]
    assert report.throughput == pytest.approx(7 / report.seconds)


def test_requests_are_sent_in_turn_with_their_type_and_token():
    seen = []

    async def answer(request):
        seen.append((request.content_type, request.headers.get("Authorization"), (await request.json())["row"]))
        return await right(request)

    loaded(answer, clients=1, count=4, token="a secret")
    assert seen == [("application/json", "Bearer a secret", i) for i in (0, 1, 2, 0)]


def test_answers_that_differ_are_wrong_and_told():
    answers = iter([ANSWER, {"label": ANSWER["label"] | {"probability": 0.7}}, "nothing"])

    async def answer(request):
        return web.json_response({"predictions": [next(answers)]})

    report = loaded(answer, clients=1, count=3, expect=Reference([ANSWER] * 3, 1e-3))
    assert (report.statuses, report.wrong, report.difference) == ({200: 3}, 2, math.inf)
    assert not report.ok
    assert "wrong: row 1 differs by 5.00e-02" in report.notes[0]
    assert any("3 x 200, 0 lost, 2 wrong" in line for line in report.lines())


@pytest.mark.parametrize("content", ["{", "[]", '{"predictions": []}', '{"predictions": 3}'])
def test_an_answer_of_another_form_is_wrong(content):
    async def answer(request):
        return web.Response(text=content)

    assert loaded(answer, clients=1, count=1, expect=Reference([ANSWER] * 3, 1e-3)).wrong == 1


def test_several_rows_of_one_request_are_compared_with_their_own():
    other = {"label": {"class": "b", "probability": 0.9, "probabilities": {"a": 0.1, "b": 0.9}}}

    async def answer(request):
        return web.json_response({"predictions": [ANSWER, other]})

    pair = [Request(b"{}", "application/json", first, 2) for first in (0, 1)]
    report = loaded(answer, pair, clients=1, count=2, expect=Reference([ANSWER, other, ANSWER], 1e-3))
    assert (report.wrong, report.rows) == (1, 4)


def test_other_statuses_have_no_latency_and_are_told():
    async def answer(request):
        raise web.HTTPTooManyRequests(text="come back later")

    report = loaded(answer, clients=2, count=3)
    assert (report.statuses, report.latency, report.wrong, report.ok) == ({429: 3}, {}, None, False)
    assert report.notes[0] == "429: come back later"
    assert "not compared" in report.lines()[1]


def test_a_connection_that_is_cut_is_a_lost_request():
    async def answer(request):
        request.transport.close()
        return web.Response()

    report = loaded(answer, clients=1, count=2)
    assert (report.lost, report.statuses) == (2, {})
    assert "lost: ServerDisconnected" in report.notes[0]


def test_each_client_waits_for_its_answer_and_has_one_connection():
    running, most, peers = 0, 0, set()

    async def answer(request):
        nonlocal running, most
        peers.add(request.transport.get_extra_info("peername"))
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return await right(request)

    loaded(answer, clients=3, count=30)
    assert most <= 3
    assert len(peers) <= 3


def test_with_a_rate_waiting_for_a_client_is_part_of_the_latency():
    """One client, a server that holds the first request until all are planned: the others waited as long."""

    async def answer(request):
        if (await request.json())["row"] == 0:
            await asyncio.sleep(0.3)
        return await right(request)

    requests = [Request(json.dumps({"row": i}).encode(), "application/json", i) for i in range(20)]
    report = loaded(answer, requests, clients=1, count=20, rate=1000.0)
    assert report.requests == 20
    assert report.latency["p50"] > 200  # the answers themselves took no time


def test_a_rate_plans_as_many_requests_at_moments_of_the_seed():
    def sent(seed):
        return loaded(right, clients=8, seconds=0.2, rate=200.0, seed=seed).requests

    assert sent(1) == sent(1)
    assert 15 < sent(1) < 75
    assert len({sent(seed) for seed in range(4)}) > 1
    assert loaded(right, clients=8, seconds=0.01, rate=0.001).requests == 0


def test_seconds_end_a_load():
    report = loaded(right, clients=2, seconds=0.2)
    assert report.seconds < 5
    assert report.requests > 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "one of seconds and count"),
        ({"seconds": 1.0, "count": 1}, "one of seconds and count"),
        ({"count": 1, "clients": 0}, "clients must be more than 0"),
        ({"count": 1, "rate": -1.0}, "rate must be more than 0"),
        ({"seconds": math.inf}, "seconds must be more than 0"),
        ({"count": 1, "requests": []}, "requests must hold at least one"),
    ],
)
def test_bad_options_are_refused(options, reason):
    requests = options.pop("requests", REQUESTS)
    with pytest.raises(pm.SpecError, match=reason):
        asyncio.run(run_load("http://127.0.0.1:9/", requests, **options))


def test_a_report_is_json():
    report = loaded(right, clients=1, count=1)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["statuses"] == {"200": 1}
    wrong = loaded(right, clients=1, count=1, expect=Reference([{}] * 3, 1e-3))
    assert json.loads(json.dumps(wrong.to_dict(), allow_nan=False))["difference"] is None
