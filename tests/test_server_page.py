"""The pages: their files, and what a person does with them in a real browser."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from importlib.resources import files
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.testclient import TestClient

import tiny
from polymodal.server.app import create_app
from polymodal.server.page import PAGES, STATIC, TYPES, routes
from polymodal.server.settings import Place, Settings

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
OUTPUTS = {"label": "classify", "price": "regress", "tags": "multilabel"}
CELLS = {"text": "grey stone tower", "x": 1.5, "colour": "red"}
LARGEST = 40 << 10

# The labels' log-odds after two epochs are larger than a graph repeats; the server then answers in torch, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:The model answers in torch:RuntimeWarning")


def source(name: str) -> str:
    return files("polymodal.server.page").joinpath("static", name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def client():
    with TestClient(Starlette(routes=routes())) as found:
        yield found


@pytest.mark.parametrize("path", [*PAGES, *(f"/static/{name}" for name in STATIC)])
def test_every_file_is_served_with_its_type_and_tag(client, path):
    name = PAGES[path] if path in PAGES else path.rpartition("/")[2]
    reply = client.get(path)
    assert reply.status_code == 200
    assert reply.text == source(name)
    assert reply.headers["content-type"] == f"{TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    again = client.get(path, headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("accepts", "packed"), [("gzip", True), ("br, gzip;q=0.5", True), ("gzip;q=0.0", False), ("identity", False)]
)
def test_a_file_is_packed_only_for_who_takes_it(client, accepts, packed):
    reply = client.get("/static/page.css", headers={"Accept-Encoding": accepts})
    assert (reply.headers.get("content-encoding") == "gzip") == packed
    assert reply.text == source("page.css")


@pytest.mark.parametrize("name", ["other.js", "__init__.py", "..%2f__init__.py", "%2e%2e/__init__.py", "", "page.js/x"])
def test_no_other_file_can_be_reached(client, name):
    assert client.get(f"/static/{name}").status_code == 404


def test_the_page_is_small(client):
    names = [name for name in STATIC if not name.startswith("docs")]
    paths = ["/", *(f"/static/{name}" for name in names)]
    assert sum(int(client.get(path).headers["content-length"]) for path in paths) < LARGEST


def test_files_name_only_files_that_are_served():
    for name in (*PAGES.values(), *STATIC):
        text = source(name)
        named = re.findall(r'(?:src|href)="static/([^"]+)"', text) + re.findall(r'from "\./([^"]+)"', text)
        assert set(named) <= set(STATIC)
        assert "https://" not in text
        assert set(re.findall(r"http://[^\s\"'`]+", text)) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("name", PAGES.values())
def test_pages_hold_no_inline_script_or_style(name):
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", source(name))


# In a browser


@pytest.fixture(scope="module")
def bundle():
    return tiny.fitted("text", "image", "audio", "table", outputs=OUTPUTS)


@pytest.fixture(scope="module")
def folder(bundle, tmp_path_factory):
    return bundle.save(tmp_path_factory.mktemp("models") / "tiny")


@contextlib.contextmanager
def serve(*places, **settings):
    """The address of a server in a thread."""
    app = create_app(Settings(models=places, device="cpu", watch=0, **settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server must start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def address(folder):
    with serve(Place(name="tiny", folder=folder)) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright must be installed to drive a browser")
    if CHROMIUM is None:
        pytest.skip("a browser must be installed: chromium, chromium-browser or google-chrome")
    api.expect.set_options(timeout=20_000)
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield SimpleNamespace(new_context=found.new_context, expect=api.expect)
        found.close()


@pytest.fixture
def visit(browser):
    """Open a page in a profile of its own. At the end: nothing went wrong in it, and it asked nobody else."""
    contexts, faults, hosts = [], [], set()
    allowed = set()

    def opened(address, path="/", known=(), **options):
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options}))
        page = contexts[-1].new_page()
        allowed.add(address.removeprefix("http://"))
        told = lambda text: None if any(word in text for word in known) else faults.append(text)  # noqa: E731
        page.on("console", lambda message: told(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: told(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url)))
        page.goto(address + path)
        browser.expect(page.locator("fieldset, section[id]").first).to_be_visible()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults
    assert {url.netloc for url in hosts if url.scheme not in ("blob", "data")} <= allowed


def share(p: float) -> str:
    return "<0.001" if 0 < p < 0.0005 else ">0.999" if 0.9995 <= p < 1 else f"{p:.3f}"


def answers(page, prediction):
    """Wait until the page shows what `Bundle.predict` says."""
    from playwright.sync_api import expect

    label, article = prediction["label"], page.locator("article").filter(has_text="label").first
    expect(article.locator(".headline b")).to_have_text(label["class"])
    expect(article.locator(".headline span")).to_contain_text(share(label["probability"]))
    for name, p in label["probabilities"].items():
        row = article.locator("table").first.get_by_role("row", name=re.compile(f"^{name} "))
        expect(row.locator(".num")).to_have_text(share(p))
    if "tags" in prediction:
        expect(page.locator(".chips b")).to_have_text(prediction["tags"]["labels"])
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")


def contributors(page):
    """Input -> what stands beside its bar or in its place, of the first task."""
    found = {}
    for row in page.locator("table.worth").first.locator("tbody tr").all():
        name, *told = row.locator("th, td").all_inner_texts()
        found[name] = "".join(told)
    return found


def choose(page, label, content, name="picture.png", kind="image/png"):
    with page.expect_file_chooser() as chooser:
        page.get_by_label(label).focus()
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": name, "mimeType": kind, "buffer": content})


def fill(page):
    page.get_by_label("text", exact=True).fill(CELLS["text"])
    page.get_by_label("x", exact=True).fill(str(CELLS["x"]))
    page.get_by_label("colour").fill(CELLS["colour"])
    choose(page, re.compile("Choose an image"), tiny.picture(3))
    choose(page, re.compile("Choose a sound"), tiny.sound(3), "sound.wav", "audio/wav")
    return {**CELLS, "image": tiny.picture(3), "audio": tiny.sound(3)}


@pytest.mark.slow
def test_the_page_says_what_predict_says_and_follows_each_change(visit, address, bundle):
    page = visit(address)
    row = fill(page)
    page.get_by_role("button", name="Predict").click()
    answers(page, bundle.predict([row])[0])
    worth = contributors(page)
    assert list(worth) == ["text", "image", "audio", "table"]
    assert all(re.fullmatch(r"[+−]\d+\.\d+", text) for text in worth.values())
    before = bundle.predict([row])[0]["label"]
    page.get_by_role("switch", name="use audio").click()
    answers(page, bundle.predict([{**row, "audio": None}])[0])
    assert contributors(page)["audio"] == "switched off"
    shown = page.locator("article .before").first.inner_text()
    assert shown == f"before: {before['class']} {share(before['probability'])}"
    page.get_by_role("button", name="Remove picture.png").click()
    answers(page, bundle.predict([{**row, "audio": None, "image": None}])[0])
    assert contributors(page)["image"] == "not given"
    page.get_by_role("switch", name="use audio").click()
    answers(page, bundle.predict([{**row, "image": None}])[0])
    page.get_by_role("button", name="Clear").click()
    page.get_by_text("Give it something").wait_for()
    assert not page.locator("article").count()


def printed(command):
    """What a command prints, as JSON."""
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_the_example_is_answered_and_leads_to_code_that_runs(visit, address, bundle, tmp_path, monkeypatch):
    page = visit(address)
    page.get_by_role("button", name="Fill in the example").click()
    row = {f.column: f.example for n, part in bundle.spec.inputs.items() for f in part.fields(n)}
    expected = bundle.predict([row])[0]
    answers(page, expected)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.png").write_bytes(row["image"])
    (tmp_path / "example.wav").write_bytes(row["audio"])
    page.get_by_role("button", name="Copy as Python").click()
    said = printed([sys.executable, "-c", page.locator("#shown").inner_text()])
    assert said["predictions"][0]["label"]["class"] == expected["label"]["class"]
    assert said["predictions"][0]["label"]["probability"] == pytest.approx(expected["label"]["probability"], abs=1e-4)
    page.get_by_role("button", name="Copy as curl").click()
    line = page.locator("#shown").inner_text()
    assert "image=@" in line
    if shutil.which("curl") and shutil.which("sh"):
        assert printed(["sh", "-c", line])["predictions"] == said["predictions"]


@pytest.mark.slow
def test_broken_content_is_told_beside_its_field_and_the_rest_is_answered(visit, address, bundle):
    page = visit(address)
    page.get_by_label("text", exact=True).fill(CELLS["text"])
    choose(page, re.compile("Choose an image"), tiny.picture(3)[:60])
    answers(page, bundle.predict([{"text": CELLS["text"], "image": None}])[0])
    field = page.locator(".field.image")
    field.get_by_role("alert").filter(has_text="damaged").wait_for()
    assert page.get_by_label(re.compile("Choose an image")).get_attribute("aria-invalid") == "true"
    assert contributors(page)["image"] == "could not be read"
    assert "image could not be read" in page.locator(".warning").inner_text()
    choose(page, re.compile("Choose an image"), tiny.picture(3))
    answers(page, bundle.predict([{"text": CELLS["text"], "image": tiny.picture(3)}])[0])
    assert not field.locator(".error").inner_text()


@pytest.mark.slow
def test_refusals_are_told_beside_the_field_they_name_or_above_the_answer(visit, address, browser):
    page = visit(address, known=["status of 422", "status of 500"])
    replies = [
        (422, {"message": "the text is too odd", "where": "inputs[0].text"}),
        (500, {"message": "something went wrong", "where": None}),
    ]
    page.route("**/v1/predict", lambda route: route.fulfill(status=replies[0][0], json={"error": replies[0][1]}))
    page.get_by_label("text", exact=True).fill("odd")
    browser.expect(page.locator(".field.text .error")).to_have_text("the text is too odd")
    browser.expect(page.locator("#problem")).to_contain_text("beside the field")
    replies.pop(0)
    page.get_by_role("button", name="Predict").click()
    browser.expect(page.locator("#problem")).to_contain_text("something went wrong")
    assert not page.locator(".field.text .error").inner_text()
    page.unroute("**/v1/predict")
    page.get_by_role("button", name="Try again").click()
    browser.expect(page.locator(".headline").first).to_be_visible()
    assert not page.locator("#problem").inner_text()


@pytest.mark.slow
def test_an_older_answer_never_replaces_a_newer_one(visit, address, bundle):
    page, held = visit(address), []
    page.route("**/v1/predict", lambda route: held.append(route) if not held else route.continue_())
    text = page.get_by_label("text", exact=True)
    with page.expect_request("**/v1/predict"):
        text.fill("sweet fruit juice")
    text.fill(CELLS["text"])
    answers(page, expected := bundle.predict([{"text": CELLS["text"]}])[0])
    late = {**expected, "label": {"class": "old", "probability": 1.0, "probabilities": {"old": 1.0}}}
    with contextlib.suppress(Exception):  # the page has given it up
        held[0].fulfill(json={"model": "tiny", "version": "0", "predictions": [late], "broken": [[]], "repairs": [{}]})
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    answers(page, expected)


@pytest.mark.slow
def test_a_recorded_sound_is_answered(visit, address, browser):
    page = visit(address, permissions=["microphone"])
    page.get_by_role("button", name="Record").click()
    page.get_by_role("button", name=re.compile(r"Stop \(1 s\)")).click()
    browser.expect(page.locator("article")).to_have_count(3)
    assert "recording.webm" in page.locator(".field.audio .preview").inner_text()
    assert re.fullmatch(r"[+−]\d+\.\d+", contributors(page)["audio"])


@pytest.mark.slow
def test_switching_an_input_off_ends_its_recording(visit, address, browser):
    page = visit(address, permissions=["microphone"])
    page.get_by_role("button", name="Record").click()
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("switch", name="use audio").click()
    browser.expect(page.locator(".record button")).to_have_text("Record")
    assert not page.locator(".field.audio .preview audio").count()


@pytest.mark.slow
def test_recording_without_a_microphone_is_explained(visit, address, browser):
    page = visit(address)
    refuse = "() => Promise.reject(new DOMException('', 'NotAllowedError'))"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {refuse}; }}")
    page.get_by_role("button", name="Record").click()
    browser.expect(page.get_by_role("status").filter(has_text="not allowed")).to_be_visible()
    page.evaluate("() => { Object.defineProperty(navigator, 'mediaDevices', { value: undefined }); }")
    page.get_by_role("button", name="Record").click()
    browser.expect(page.get_by_role("status").filter(has_text="https")).to_be_visible()


@pytest.mark.slow
def test_files_can_be_dropped_and_pasted(visit, address, bundle):
    page = visit(address)
    give = """([kind, data]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(data)], "given.png", { type: "image/png" }));
      const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
      document.querySelector(kind === "drop" ? ".field.image .media" : "textarea").dispatchEvent(event);
    }"""
    for seed, kind in enumerate(("drop", "paste")):
        page.evaluate(give, [kind, list(tiny.picture(seed))])
        answers(page, bundle.predict([{"image": tiny.picture(seed)}])[0])


@pytest.mark.slow
def test_two_people_do_not_share_a_form(visit, address):
    first, second = visit(address), visit(address)
    fill(first)
    second.reload()
    second.locator("fieldset").first.wait_for()
    assert [field.input_value() for field in second.locator("textarea, input[type=number]").all()] == ["", ""]
    assert not second.locator(".preview img, article").count()


@pytest.mark.slow
def test_the_keyboard_is_enough(visit, address, bundle):
    page = visit(address)

    def tab_to(test):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate(f"() => document.activeElement.matches({json.dumps(test)})"):
                return page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        raise AssertionError(f"{test} must be reached by the tab key")

    assert tab_to("textarea") != "none"
    page.keyboard.type(CELLS["text"])
    tab_to("input[type=number]")
    page.keyboard.type(str(CELLS["x"]))
    page.keyboard.press("Enter")
    answers(page, bundle.predict([{"text": CELLS["text"], "x": CELLS["x"]}])[0])
    page.locator("body").press("Home")
    page.evaluate("() => document.activeElement.blur()")
    tab_to("[role=switch]")
    page.keyboard.press("Space")
    answers(page, bundle.predict([{"x": CELLS["x"]}])[0])


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_scrolling_sideways(visit, address, browser, scheme, tmp_path):
    size = {"width": 360, "height": 740}
    page = visit(address, viewport=size, is_mobile=True, has_touch=True, color_scheme=scheme)
    paper = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    page.get_by_role("button", name="Fill in the example").tap()
    browser.expect(page.locator("article")).to_have_count(3)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    assert page.get_by_text("Take a photo").is_visible()
    page.evaluate("() => scrollTo(0, 0)")
    browser.expect(page.locator("#peek")).to_be_visible()  # the answer in one line, while it is out of sight
    assert page.screenshot(path=tmp_path / "phone.png")
    page.goto(f"{address}/docs")
    page.locator("section").first.wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360


@pytest.mark.slow
def test_a_token_is_asked_for_and_several_models_can_be_chosen(browser, tmp_path):
    bundle = tiny.fitted("text")
    folder = bundle.save(tmp_path / "tiny")
    places = [Place(name="one", folder=folder), Place(name="two", folder=folder)]
    with serve(*places, token="open sesame") as address:
        page = browser.new_context().new_page()
        page.goto(address)
        for token, told in (("wrong", "does not take"), ("open sesame", "")):
            page.get_by_label("asks for a token").fill(token)
            page.keyboard.press("Enter")
            browser.expect(page.locator("#problem")).to_contain_text(told)
        page.get_by_label("model", exact=True).select_option("two")
        page.get_by_label("text", exact=True).fill(CELLS["text"])
        answers(page, bundle.predict([{"text": CELLS["text"]}])[0])
        assert "by two " in page.locator(".foot").inner_text()
        page.get_by_role("button", name="Copy as curl").click()
        line = page.locator("#shown").inner_text()
        assert "model=two" in line
        assert "$TOKEN" in line
        assert "sesame" not in line
        page.context.close()


@pytest.mark.slow
def test_every_example_of_the_docs_runs(visit, address, browser):
    page = visit(address, "/docs")
    sections = page.locator("section[id]")
    described = page.evaluate("() => fetch('openapi.json').then((reply) => reply.json())")
    assert sections.count() == sum(len({"get", "post"} & item.keys()) for item in described["paths"].values())
    for button in page.get_by_role("button", name="Send").all():
        button.click()
        shown = button.locator("xpath=../following-sibling::div[1]").locator(".status")
        browser.expect(shown).to_have_text(re.compile("^200"))
    page.get_by_role("button", name="Copy POST /v1/predict").first.click()
    browser.expect(page.get_by_role("status").filter(has_text=re.compile("Copied|Select")).first).to_be_visible()
