"""Data made up from the server's own description, right and wrong: it answers all of it, and as it says."""

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

import tiny
from hosted import ask, running
from polymodal.server.app import create_app
from polymodal.server.settings import Settings

pytestmark = pytest.mark.slow
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
]
EXAMPLES = {"/v1/predict": 120, "/v1/spec": 25, "/v1/card": 15}
"""Path -> cases of each mode; 5 for the others, which take nothing."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tiny.fitted("text", "table", "image", "audio").save(tmp_path_factory.mktemp("bundles") / "whole")
    with running(create_app(Settings.make(folder, device="cpu", max_rows=5))) as place:
        yield place


@pytest.fixture(scope="module")
def described(place):
    return schemathesis.openapi.from_url(f"http://{place[0]}:{place[1]}/openapi.json")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_everything_that_can_be_made_up_is_answered_as_described(mode, described, place):
    tried, seen = 0, set()
    for found in described.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and operation.path not in EXAMPLES:
            continue  # nothing in them can be wrong

        @hypothesis.settings(
            max_examples=EXAMPLES.get(operation.path, 5), deadline=None, database=None, derandomize=True,
            suppress_health_check=list(HealthCheck), phases=[Phase.generate],
        )  # fmt: skip
        @hypothesis.given(operation.as_strategy(generation_mode=mode))
        def send(case):
            nonlocal tried
            tried += 1
            response = case.call()
            seen.add(response.status_code)
            late = response.status_code == 504 and "X-Deadline-Ms" in (case.headers or {})
            assert response.status_code < 500 or late, response.text
            assert b"Traceback" not in response.content
            case.validate_response(response, checks=CHECKS)

        send()
    assert tried >= 100
    assert (200 in seen) == (mode is GenerationMode.POSITIVE) or seen & {400, 404, 413, 415, 422}
    assert ask(place, "/readyz").status == 200
