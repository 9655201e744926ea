"""The shape of the house: who may import whom, and how large a file may be."""

import ast
from functools import cache
from pathlib import Path

import pytest

import polymodal

ROOT = Path(polymodal.__file__).parent
LAYERS: tuple[tuple[str, ...], ...] = (
    ("disk", "errors", "machine", "types", "values", "reading"),
    ("sentence",),
    ("schemes",),
    ("metrics",),
    (
        "nn.weights",
        "nn.backbone",
        "nn.blocks",
        "nn.linear",
        "nn.normal",
        "nn.numeric",
        "nn.optimise",
        "nn.signal",
        "nn.manifold",
        "nn.provider",
        "nn.chain",
        "nn.spelling",
        "nn.segment",
        "nn.drop",
        "nn.project",
        "nn.lowrank",
    ),
    ("nn.fuse", "nn.noise", "nn.align", "nn.adapt", "nn.bert", "nn.efficientnet", "nn.speech", "nn.race", "nn.runtime"),
    ("nn.trunk", "nn.hub", "nn.hog", "nn.named", "nn.quantise", "nn.worded"),
    ("nn.average", "nn.language", "nn.pieces"),
    ("part",),
    ("task",),
    ("settings",),
    ("decoder",),
    ("modalities", "fusions", "tasks"),
    ("spec",),
    ("data.shards", "data.cells", "data.listed", "data.clean", "data.write"),
    ("data.spool", "data.infer"),
    ("data.shelf", "data.conll"),
    ("data.features", "data.files"),
    ("data.table",),
    ("data.source", "data.split", "data.guess"),
    ("data.leakage", "data.embedding"),
    ("data.rows",),
    ("data.gather",),
    ("data.loader",),
    ("devices", "ranks", "checkpoint", "tracking", "mixing"),
    ("model",),
    ("tracing",),
    ("objectives", "balance"),
    ("train", "evaluate", "baselines"),
    ("tune",),
    ("learn",),
    ("diagnose", "explain"),
    ("card", "predictions", "int8"),
    ("folder",),
    ("bundle",),
    ("asking",),
    ("embedding",),
    ("indexing",),
    ("measuring", "exporting"),
    ("runtimes", "quantising"),
    ("sides",),
    ("fitting", "inspection", "improving", "searching"),
    ("server",),
    ("trials",),
    ("serving", "verifying"),
    ("report",),
    ("cli",),
)
"""Each row imports only from rows above it. A folder that stands here as a whole keeps its own order inside."""

EXTRAS = {"transformers", "huggingface_hub", "openvino", "jieba", "janome", "torchjd", "captum", "cleanlab", "optuna"}
EXTRAS |= {"tensorboard", "wandb", "mlflow", "usearch", "gguf"}
"""Packages that are installed on request, so that they may be imported where they are needed."""

LAZY = {
    ("__init__", "load"),
    ("bundle", "diagnose"),
    ("bundle", "predict"),
    ("modalities.audio.part", "backbone"),
    ("modalities.audio.decode", "decode"),
    ("nn.runtime", "__init__"),
    ("nn.runtime", "_faults"),
    ("nn.speech", "read_initializers"),
    ("server.run", "_one"),
    ("server.run", "_many"),
    ("verifying", "server"),
}
"""Functions that import one of our modules late, since that keeps ``import polymodal`` cheap or needs an extra."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
every = pytest.mark.parametrize("name", FILES)


def place(name: str) -> tuple[int, str]:
    """Row and entry of `LAYERS` that a module belongs to."""
    for row, entries in enumerate(LAYERS):
        for entry in entries:
            if name == entry or name.startswith(f"{entry}."):
                return row, entry
    raise AssertionError(f"{name} stands in no layer: add it to LAYERS")


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def modules(node: ast.AST) -> list[str]:
    """Modules of ours that an import statement reads, by their name below polymodal."""
    if isinstance(node, ast.Import):
        return [alias.name.removeprefix("polymodal.") for alias in node.names if alias.name.startswith("polymodal.")]
    if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("polymodal"):
        return []
    base = (node.module or "").removeprefix("polymodal").removeprefix(".")
    inner = [f"{base}.{alias.name}".removeprefix(".") for alias in node.names]
    return [name if name in FILES else base for name in inner if name in FILES or base]


def typing_only(module: ast.Module) -> set[ast.AST]:
    """Statements under ``if TYPE_CHECKING``."""
    blocks = [n for n in ast.walk(module) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {inner for block in blocks for inner in ast.walk(block)}


def imports(name: str) -> set[str]:
    hidden = typing_only(tree(name))
    return {m for node in ast.walk(tree(name)) if node not in hidden for m in modules(node)}


@pytest.mark.parametrize("name", [n for n in FILES if n not in ("__init__", "polymodal", "", "cli", "__main__")])
def test_a_file_imports_only_from_rows_above(name):
    if name in ("nn", "data"):
        assert not imports(name), "a folder's __init__ is only a docstring"
        return
    row, entry = place(name)
    for other in imports(name):
        if other in ("nn", "data"):
            continue
        above, theirs = place(other)
        inside = theirs == entry and (other == entry or other.startswith(f"{entry}."))
        assert above < row or inside, f"{name} must not import {other}"


@pytest.mark.parametrize("kind", ["modalities", "fusions", "tasks"])
def test_parts_of_one_kind_never_import_one_another(kind):
    for name in FILES:
        if name.startswith(f"{kind}."):
            own = ".".join(name.split(".")[:2])
            for other in imports(name):
                assert not other.startswith(kind) or other.startswith(own), f"{name} must not import {other}"


def test_no_cycles():
    seen: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join((*path, name))}"
        if name in seen or name not in FILES:
            return
        for other in imports(name):
            if other != name:
                visit(other, (*path, name))
        seen[name] = 1

    for name in FILES:
        if name not in ("", "cli"):
            visit(name, ())


@every
def test_no_file_is_over_300_lines(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 300


@every
def test_no_import_hides_in_a_function_save_extras(name):
    for function in ast.walk(tree(name)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                roots = {alias.name.split(".")[0] for alias in node.names}
                roots = {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and node.module else roots
                listed = ((name or "__init__"), function.name) in LAZY
                assert roots <= EXTRAS or listed, f"{name}.{function.name} imports {sorted(roots)}"


def test_every_layer_is_used():
    for entry in (entry for row in LAYERS for entry in row):
        assert any(name == entry or name.startswith(f"{entry}.") for name in FILES), f"{entry} is no file"
