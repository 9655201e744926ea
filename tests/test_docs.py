"""The documentation is run: every block of README.md and docs/*.md, every table of options, every link."""

import csv
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import types
import urllib.request
import wave
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

import polymodal as pm
from polymodal import cli
from polymodal.decoder.settings import Decoder
from polymodal.nn.language.decode import Decoding
from polymodal.part import Fusion, Modality, Part
from polymodal.settings import Alignment, Data, Finetune, Manifold, Split, Training
from polymodal.spec import Spec
from polymodal.task import Task

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FRUIT = {"apple": (200, 40, 40), "pear": (160, 190, 60), "plum": (110, 40, 130)}
LEARNED = {
    "text": {"vocabulary"},
    "words": {"vocabulary"},
    "table": {"seen", "scales", "levels", "rares"},
    "classify": {"temperature", "weights", "set_threshold", "verbatim"},
    "multilabel": {"temperature", "thresholds", "positive", "set_threshold"},
    "tag": {"entities", "words", "gated"},
    "generate": {"words", "verbatim"},
    "regress": {"mean", "scale", "spread", "residual", "margin"},
}
"""Fields that fitting sets; a user does not."""

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def write_sound(path, pitch, rng):
    t = np.arange(4800) / 16_000
    x = 0.3 * np.sin(2 * np.pi * pitch * t) + rng.normal(0, 0.05, t.size)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((x.clip(-1, 1) * 32767).astype("<i2").tobytes())


def write_picture(path, colour, rng):
    pixels = np.clip(rng.normal(colour, 40, (24, 24, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)


def write_table(folder, name, rows, seed, sounds):
    """Fruit with texts, pictures, a weight, an origin, a date and perhaps sounds; a tenth of the cells is missing."""
    rng, labelled = np.random.default_rng(seed), name != "new.csv"
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        heard = ["sound"] * sounds
        table.writerow(["text", "image", *heard, "weight", "origin", "bought", *(["label", "price"] * labelled)])
        for i in range(rows):
            label = list(FRUIT)[i % 3]
            media = [f"media/{Path(name).stem}-{i}.{end}" for end in ("png", "wav")[: 1 + sounds]]
            write_picture(folder / media[0], FRUIT[label], rng)
            if sounds:
                write_sound(folder / media[1], 300 + 150 * (i % 3), rng)
            first, second = rng.choice(["ripe", "sweet", "small", "large", "fresh", "bruised"], 2, replace=False)
            text = f"A {first} and {second} {label}, number {seed}{i}."
            cells = [text, *media, round(float(rng.normal(150 + 30 * (i % 3), 20)), 1), "north" if i % 2 else "south"]
            cells = ["" if rng.random() < 0.1 else cell for cell in (*cells, f"2024-0{1 + i % 9}-1{i % 10}")]
            table.writerow([*cells, *([label, round(float(rng.normal(1 + i % 3, 0.1)), 2)] * labelled)])


def write_sentences(path):
    """Who meets whom, and where: a word and its tag a line."""
    people, places = ["Ada", "Bob", "Eve", "Tom"], ["Rome", "Oslo", "Lima"]
    with path.open("w", encoding="utf-8") as file:
        for i in range(24):
            one, two, place = people[i % 4], people[(i + 1) % 4], places[i % 3]
            tags = {one: "B-person", two: "B-person", place: "B-place"}
            for word in f"{one} met {two} in {place} .".split():
                file.write(f"{word}\t{tags.get(word, 'O')}\n")
            file.write("\n")


@pytest.fixture
def fruit(page, tmp_path):
    """The folder in which a reader of a page works. A backbone costs most of a page's time: sounds only where named."""
    folder = tmp_path / "fruit"
    (folder / "media").mkdir(parents=True)
    sounds = page.name == "README.md" or any("sound" in code for _, code in blocks(page))
    for seed, (name, rows) in enumerate({"train.csv": 48, "test.csv": 12, "new.csv": 8}.items()):
        write_table(folder, name, rows, seed, sounds)
    if page.name == "words.md":
        write_sentences(folder / "sentences.conll")
    rng = np.random.default_rng(9)
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / "apple.jpg")
    return folder


def blocks(page):
    return FENCE.findall(page.read_text(encoding="utf-8"))


def lines_of(code):
    """Commands of a shell block, without comments, continued lines joined."""
    joined = code.replace("\\\n", " ").splitlines()
    return [words for line in joined if (words := shlex.split(line, comments=True))]


# --- every block runs ---


ELSEWHERE = (
    "polymodal diagnose model/ test.csv",  # docs/diagnose.md runs it
    "polymodal improve model/ train.csv --input table --epochs 2",  # likewise
    "polymodal export model/ --to int8 --table test.csv --calibrate train.csv",  # test_quantise, on a smaller network
)
"""Commands that cost much and run elsewhere, on smaller data or on another page: here they are parsed."""


def run_command(words, servers):
    if " ".join(words) in ELSEWHERE or (words[:2] == ["polymodal", "serve"] and "--port" not in words):
        command(words[1]).make_context(words[1], list(words[2:]))  # parses, runs nothing
    elif words[:2] == ["polymodal", "serve"]:
        servers.append(Background(words[1:]))
    elif words[0] == "curl":
        run_curl(words)
    elif words[0] == "polymodal":
        with pytest.raises(SystemExit) as end:
            cli.app(words[1:])
        assert not end.value.code, words
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:]) <= set(targets), words
    elif words[:2] == ["pip", "install"]:
        check_installation(words[2:])
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), words
    elif words[0] == "torchrun":
        assert words[3:5] == ["-m", "polymodal.cli"], words
        command(words[5]).make_context(words[5], list(words[6:]))  # parses, runs nothing
    else:
        raise AssertionError(f"no way to check {words}")


class Background:
    """A server that a page starts, on the port that the page names."""

    def __init__(self, words):
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `stop`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "polymodal.cli", *words], stdout=self.log, stderr=subprocess.STDOUT
        )
        place = f"http://127.0.0.1:{words[words.index('--port') + 1]}/readyz"
        for _ in range(600):
            if self.process.poll() is None and self._ready(place):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        self.log.seek(0)
        raise AssertionError(self.log.read().decode())

    @staticmethod
    def _ready(place):
        try:
            return urllib.request.urlopen(place, timeout=5).status == 200
        except OSError:
            return False

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        self.log.close()


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_curl(words):
    """Send what a line of the documentation sends."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    answer = json.loads(subprocess.run([*words, "--fail-with-body"], capture_output=True, check=True).stdout)
    assert {"predictions", "items"} & set(answer), answer


def check_manifest(manifest):
    """A Kubernetes Deployment: its arguments are ours, its probes are paths of the server."""
    assert manifest["kind"] == "Deployment"
    pod = manifest["spec"]["template"]["spec"]
    for container in pod["containers"]:
        command("serve").make_context("serve", list(container["args"]))
        probes = {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
        assert probes == {"/readyz", "/healthz"}
        mounts, volumes = {m["name"] for m in container["volumeMounts"]}, {v["name"] for v in pod["volumes"]}
        assert mounts == volumes


def check_installation(words):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    weights = {w.requirement for w in pm.PACKAGED.values()}
    for word in words:
        if (extra := re.search(r"\[([\w,]+)\]$", word)) is not None:
            assert set(extra[1].split(",")) <= set(project["optional-dependencies"]), word
        elif not word.startswith("-") and word not in (".", "torch") and "://" not in word:
            assert word in weights, word


def run_python(code, namespace, name):
    exec(compile(code, name, "exec"), namespace)  # noqa: S102


@pytest.fixture
def own_modules(monkeypatch, fruit):
    """Modules and parts that a page defines are gone after it."""
    monkeypatch.chdir(fruit)
    monkeypatch.syspath_prepend(str(fruit))
    before, known = set(sys.modules), [(kind, dict(kind.known)) for kind in (Modality, Fusion, Task)]
    yield
    for kind, parts in known:
        kind.known.clear()
        kind.known.update(parts)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(fruit)):
            del sys.modules[name]


@pytest.fixture
def servers():
    """Servers that a page has started end with it."""
    started = []
    yield started
    for server in started:
        server.stop()


@by_page
@pytest.mark.usefixtures("own_modules")
def test_every_block_runs(page, fruit, monkeypatch, servers):
    module = types.ModuleType(f"docs_{page.stem.replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    port = str(free_port())
    for language, text in blocks(page):
        code = text.replace("8080", port)  # which may be taken on this machine
        if (named := re.match(r"# ([\w.]+\.(?:py|yaml))\n", code)) is not None:
            (fruit / named[1]).write_text(code, encoding="utf-8")
        if language == "bash":
            for words in lines_of(code):
                run_command(words, servers)
        elif language == "python" and named is None:
            run_python(code, vars(module), f"{page.name}: {code.splitlines()[0]}")
        elif language == "yaml" and "kind: Deployment" in code:
            check_manifest(yaml.safe_load(code))
        elif language == "yaml":
            Spec.parse(yaml.safe_load(code))
        elif language == "json":
            json.loads(code)
        else:
            assert named is not None or language == "text", f"{page.name}: a block of {language or 'no language'}"


# --- tables of options tell the truth ---


def ours(kind):
    """The registered parts of a kind that this package brings."""
    return {n: part for n, part in kind.known.items() if part.__module__.startswith("polymodal.")}


def groups():
    """Name of a table of options -> class whose fields it lists."""
    found = {"Spec": Spec, "Training": Training, "Split": Split, "Data": Data}
    found |= {"Decoder": Decoder, "Decoding": Decoding}
    found |= {"Training.alignment": Alignment, "Training.manifold": Manifold, "Training.finetune": Finetune}
    for kind in (Modality, Task):
        found |= {
            f"{kind.__name__}.{n}": part for n, part in kind.known.items() if part.__module__.startswith("polymodal.")
        }
    for n in list(found):
        if "augmentation" in getattr(found[n], "model_fields", ()):
            found[f"{n}.augmentation"] = found[n].model_fields["augmentation"].annotation.__args__[0]
    return found


def options(cls):
    """Name of each field that a user may set -> its default as a table shows it."""
    part, fields = issubclass(cls, Part), getattr(cls, "model_fields", None) or cls.__pydantic_fields__
    learned = LEARNED.get(fields["type"].default, set()) if part else {"digest"}
    common = {"type", "column", "weight"} if part else set()
    return {f.alias or n: shown(f) for n, f in fields.items() if n not in learned | common}


def shown(field):
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Training | Split | Decoder | Decoding):
        return "see below"
    if isinstance(value, Fusion):
        return f"`{value.kind}`"
    return "–" if value is None or value == () else f"`{json.dumps(value)}`"


def tables(marker):
    """Name behind a marker -> {first cell without code marks: second cell} of the table below it."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, body in re.findall(rf"<!-- {marker}: ([\w.]+) -->\n\n((?:\|.*\n)+)", text):
            assert name not in found, name
            rows = [re.split(r"(?<!\\)\|", line)[1:3] for line in body.splitlines()[2:]]
            found[name] = {first.strip().strip("`"): second.strip() for first, second in rows}
    return found


@pytest.mark.parametrize("name", sorted(groups()))
def test_every_option_is_documented_with_its_default(name):
    told = {option: default.replace("\\|", "|") for option, default in tables("options")[name].items()}
    assert told == options(groups()[name])


def test_every_option_of_every_fusion_is_documented():
    parts = ours(Fusion)
    assert tables("options")["Fusion"] == {f"{n}.{o}": d for n, part in parts.items() for o, d in options(part).items()}
    text = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    assert [n for n in parts if f"| `{n}` |" not in text] == []


def test_tables_of_options_are_about_parts_that_exist():
    assert set(tables("options")) == {*groups(), "Fusion"}


def test_the_full_spec_shows_every_default():
    page = ROOT / "docs/spec.md"
    full = max((yaml.safe_load(code) for language, code in blocks(page) if language == "yaml"), key=lambda s: len(s))
    for name, cls in {"training": Training, "split": Split, "data": Data}.items():
        assert set(full[name]) == set(cls.model_fields)
    assert Spec.parse(full) == Spec.parse({k: full[k] for k in ("inputs", "outputs", "data")})
    assert set(full) == set(Spec.model_fields)


def command(name):
    return typer.main.get_command(cli.app).commands[name]


@pytest.mark.parametrize("name", sorted(typer.main.get_command(cli.app).commands))
def test_every_option_of_every_command_is_documented(name):
    told = {option.strip("` ") for cell in tables("command")[name] for option in cell.split(",")}
    params = [p for p in command(name).params if p.param_type_name == "option"]
    assert told == {o for p in params for o in (*p.opts, *p.secondary_opts)}


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    told = re.findall(r"^::: polymodal\.([\w.]+)$", text, re.MULTILINE)
    homes = {name: f"{pm._HOMES[name]}.{name}" if name in pm._HOMES else name for name in pm.__all__}
    assert sorted(told) == sorted(homes.values())


# --- links and files ---


@by_page
def test_links_lead_somewhere(page):
    text = re.sub(FENCE, "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


def test_site_has_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = {name for entry in site["nav"] for name in entry.values()}
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_architecture_names_every_file():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src/polymodal"
    files = [path for folder in (".", "data", "nn") for path in (source / folder).glob("*.py")]
    names = {path.stem for path in files} | {path.name for path in source.iterdir() if (path / "__init__.py").is_file()}
    missing = [name for name in sorted(names) if not re.search(rf"\b{name}\b", text)]
    assert missing == []


def test_words_of_the_licence_and_version():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert f"## {pm.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
