"""Run the exported graphs on the example tensors and compare with what the model said. Needs numpy and onnxruntime."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent
TOLERANCE = 1e-3


def main() -> int:
    """Run every graph; 1 if one of them answers otherwise."""
    about = json.loads((HERE / "export.json").read_text(encoding="utf-8"))
    example, wrong = np.load(HERE / "example.npz"), 0
    for graph in about["graphs"]:
        session = onnxruntime.InferenceSession(str(HERE / graph["file"]), providers=["CPUExecutionProvider"])
        tensors = {port["name"]: example[f"{graph['file']}:{port['name']}"] for port in graph["inputs"]}
        names = [port["name"] for port in graph["outputs"]]
        for name, got in zip(names, session.run(names, tensors), strict=True):
            want = example[f"{graph['file']}:{name}"]
            apart = difference(np.asarray(got), want)
            wrong += not apart <= TOLERANCE
            sys.stdout.write(f"{graph['file']} {name} {list(want.shape)}: largest difference {apart:.1e}\n")
    return int(wrong > 0)


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """Largest difference, relative to numbers above 1. NaN stands for what is absent, and must be so in both."""
    if got.shape != want.shape or not np.array_equal(np.isnan(got), np.isnan(want)):
        return np.inf
    known = ~np.isnan(want)
    return float(np.max(np.abs(got - want)[known] / np.maximum(1, np.abs(want[known])), initial=0.0))


if __name__ == "__main__":
    sys.exit(main())
