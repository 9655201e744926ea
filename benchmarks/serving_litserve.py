"""LitServe with its own batching around `Bundle.predict` (see serving.py): sixteen rows at most, 2 ms at most."""

from __future__ import annotations

import argparse
import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve

import polymodal as pm
from polymodal.trials.ask import fields, made_up


class Api(litserve.LitAPI):
    """Rows as JSON in, with media in base64; LitServe cannot hand uploads to its workers, which are other processes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(max_batch_size=16, batch_timeout=0.002, api_path="/v1/predict")
        self.folder = folder

    def setup(self, device: str) -> None:
        """Load and warm the bundle, in the worker."""
        self.bundle = pm.load(self.folder)
        self.media = {field.column for field in fields(self.bundle.spec) if isinstance(field.example, bytes)}
        self.bundle.predict(made_up(self.bundle.spec)[:1])

    def decode_request(self, request) -> dict[str, Any]:  # noqa: ANN001  (LitServe reads the annotation)
        """One row."""
        row = request["inputs"][0]
        return {column: base64.b64decode(cell) if column in self.media else cell for column, cell in row.items()}

    def predict(self, x: Sequence[dict[str, Any]]) -> list[Any]:
        """Rows that LitServe gathered."""
        return list(self.bundle.predict(x))

    def encode_response(self, output: Any) -> dict[str, Any]:
        """One row's answer."""
        return {"predictions": [output]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until the process group is ended: LitServe's own children outlive a SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(arguments)
    server = litserve.LitServer(
        Api(options.bundle), accelerator="cpu", workers_per_device=1, healthcheck_path="/readyz"
    )
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False, access_log=False)


if __name__ == "__main__":
    main()
