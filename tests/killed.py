"""Train with a resume file, slowly enough to be killed in the middle: killed.py FILE WEIGHTS [epoch to die in]."""

import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import toys
from polymodal.checkpoint import Checkpoint
from polymodal.model import Model
from polymodal.train import Trainer


def main(file: str | Path, weights: str | Path, die: int = -1) -> tuple[int, int]:
    """Train, and kill this very process hard in the middle of epoch ``die``; tell how many epochs and steps it took."""
    spec = toys.spec(training={"epochs": 6, "batch_size": 8}, fusion={"type": "concat", "dropout": 0.3})
    torch.manual_seed(0)
    data = toys.xor(64, absent=0.2)
    trainer = Trainer(Model(spec), data, toys.xor(32, seed=1), torch.device("cpu"), Checkpoint(Path(file), "this fit"))
    step = trainer._step
    steps = 0

    def counted(*args):
        nonlocal steps
        steps += 1
        if steps == die * 8 + 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args)

    trainer._step = counted
    history = trainer.run()
    save_file({name: t.contiguous() for name, t in trainer.model.state_dict().items()}, weights)
    return len(history), steps


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
