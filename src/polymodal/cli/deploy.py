"""Commands that bring a bundle to its users: serve, verify, export, load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import polymodal as pm
from polymodal.cli.common import BundleFolder, Device, Json, app, bars, out, print_json
from polymodal.errors import SpecError

Token = Annotated[
    str | None, typer.Option(envvar="POLYMODAL_TOKEN", show_envvar=True, help="Bearer token of every request.")
]
Runtime = Annotated[str, typer.Option(help="Of the backbones: auto measures; onnxruntime, openvino, torch, ...")]
Labelled = Annotated[str | None, typer.Option("--table", help="Rows to use; made-up ones when not given.")]


@app.command()
def serve(  # noqa: PLR0913  (options of a command)
    bundles: Annotated[list[str], typer.Argument(help="Bundles' folders, each perhaps as name=folder.")],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8080,
    workers: Annotated[int, typer.Option(help="Processes that answer.")] = 1,
    device: Device = "auto",
    runtime: Runtime = "auto",
    threads: Annotated[int | None, typer.Option(help="Of one call of a runtime; every core when not given.")] = None,
    batch: Annotated[int, typer.Option(help="Most rows that go through the model together.")] = 16,
    wait_ms: Annotated[float, typer.Option(help="Longest wait for others that are on their way.")] = 2.0,
    queue: Annotated[int, typer.Option(help="Rows that may wait; more are answered by 429.")] = 256,
    deadline: Annotated[float, typer.Option(help="Seconds after which a request is given up.")] = 10.0,
    max_body: Annotated[int, typer.Option(help="Most bytes of a request.")] = 32 << 20,
    max_rows: Annotated[int, typer.Option(help="Most rows of a request.")] = 256,
    max_pixels: Annotated[int, typer.Option(help="Most pixels of an image.")] = 50_000_000,
    max_seconds: Annotated[float, typer.Option(help="Longest sound, in seconds.")] = 600.0,
    token: Token = None,
    allow_hosts: Annotated[list[str] | None, typer.Option(help="Host that media may be fetched from; repeat.")] = None,
    watch: Annotated[float, typer.Option(help="Seconds between looks for a new version; 0 never looks.")] = 2.0,
    drain: Annotated[float, typer.Option(help="Seconds to finish what was taken in, when stopped.")] = 30.0,
    index: Annotated[Path | None, typer.Option(help="Folder of an index to answer /v1/find from.")] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Show / to try the model on, and /docs.")] = True,
) -> None:
    """Answer over HTTP, with a page to try the model on."""
    pm.serve(
        *bundles, host=host, port=port, workers=workers, device=device, runtime=runtime, threads=threads, batch=batch,
        wait_ms=wait_ms, queue=queue, deadline=deadline, max_body=max_body, max_rows=max_rows, max_pixels=max_pixels,
        max_seconds=max_seconds, token=token, allow_hosts=tuple(allow_hosts or ()), watch=watch, drain=drain,
        index=index, page=page, tell=typer.echo,
    )  # fmt: skip


@app.command()
def verify(
    bundle: BundleFolder,
    table: Labelled = None,
    as_json: Json = False,
) -> None:
    """Check that every runtime and the server agree with what training computed."""
    with bars(as_json) as progress:
        found = pm.verify(bundle, table, progress=progress)
    if as_json:
        print_json(found.to_dict())
    else:
        out.print(escape("\n".join(found.lines())))
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def export(
    bundle: BundleFolder,
    to: Annotated[str, typer.Option(help="onnx: graphs to use without Polymodal; int8: a faster bundle.")] = "onnx",
    out_folder: Annotated[Path | None, typer.Option("--out", help="Folder to write; for onnx.")] = None,
    table: Labelled = None,
    calibrate: Annotated[str | None, typer.Option(help="Rows that int8 takes its ranges from; for int8.")] = None,
    as_json: Json = False,
) -> None:
    """Write the model as ONNX graphs, or add int8 backbones to it where they cost no accuracy."""
    if to == "onnx":
        if calibrate is not None:
            raise SpecError("--calibrate is for --to int8, and has no effect on onnx. Leave it out.")
        found = pm.export(pm.load(bundle), out_folder or Path("onnx"), table=table)
    elif to == "int8":
        found = _int8(bundle, out_folder, table, calibrate)
    else:
        raise SpecError(f"--to must be onnx or int8, got {to!r}.")
    if as_json:
        print_json(found.to_dict())
    else:
        out.print(escape("\n".join(found.lines())))


def _int8(bundle: Path, out_folder: Path | None, table: str | None, calibrate: str | None) -> pm.Quantisation:
    if out_folder is not None:
        raise SpecError("--out is for --to onnx; int8 backbones are written into the bundle. Leave it out.")
    if table is None:
        raise SpecError("--to int8 must have --table with labelled rows to measure the loss of accuracy on, got none.")
    found = pm.quantise(pm.load(bundle, device="cpu"), table, calibrate=calibrate)
    found.save(bundle)
    return found


@app.command()
def load(  # noqa: PLR0913  (options of a command)
    target: Annotated[str, typer.Argument(help="A bundle's folder, to be served meanwhile, or a server's URL.")],
    *,
    clients: Annotated[int, typer.Option(help="That ask at once.")] = 16,
    seconds: Annotated[float, typer.Option(help="How long.")] = 30.0,
    rate: Annotated[float | None, typer.Option(help="Requests a second, whatever the answers do.")] = None,
    table: Labelled = None,
    runtime: Runtime = "auto",
    workers: Annotated[int, typer.Option(help="Processes of the server that is started.")] = 1,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Load a server with requests: percentiles of latency, throughput, errors."""
    found = pm.load_test(
        target, clients=clients, seconds=seconds, rate=rate, table=table, runtime=runtime, workers=workers, token=token
    )
    if as_json:
        print_json(found.to_dict())
    else:
        out.print(escape("\n".join(found.lines())))
    if found.lost or found.wrong:
        raise typer.Exit(1)
