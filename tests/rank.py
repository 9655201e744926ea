"""One rank of several trainings: rank.py FOLDER, started as torchrun starts it."""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file

import toys
from polymodal.model import Model
from polymodal.ranks import Ranks
from polymodal.train import Trainer
from polymodal.types import Masked

METHODS = {
    "uncertainty": {"objective": "uncertainty"},
    "dwa": {"objective": "dwa"},
    "gradnorm": {"objective": "gradnorm"},
    "pcgrad": {"objective": "pcgrad"},
    "upgrad": {"objective": "upgrad"},
    "mmpareto": {"balance": "mmpareto"},
    "ogm_ge": {"balance": "ogm_ge"},
    "gradient_blending": {"balance": "gradient_blending"},
}
CASES = ("plain", "absent", "unlabelled", *METHODS)


def rows(case: str, count: int = 48):
    """XOR, with a linked task; ``case`` decides what is missing where. Of each batch, rank 0 has the even places."""
    data = toys.xor(count, absent=0.2)
    inputs = {name: kept.whole for name, kept in data.inputs.items()}
    half = torch.arange(count) % 2 == 0
    number = inputs["a"].values[:, 0, :1] * 2 + 1
    known = torch.ones(count, 1, dtype=torch.bool)
    targets = {"y": data.targets["y"], "z": Masked(number, known)}
    if case == "absent":
        inputs["b"] = inputs["b"].without(half)
        inputs["a"] = Masked(inputs["a"].values, known)
    if case == "unlabelled":
        targets["y"] = targets["y"].without(half & (torch.arange(count) > 4))
        targets["z"] = targets["z"].without(~half)
    return toys.prepared(inputs, targets)


def train(case: str, weights: Path) -> dict[str, Any]:
    """Train, write the weights of this rank, and tell the losses and how many rows had the second input."""
    outputs = {"y": {"type": "classify", "classes": [0, 1]}, "z": {"type": "regress", "mean": [0], "scale": [1]}}
    if case in METHODS:
        outputs["z"] = {**outputs["z"], "objective": "squared"}
    plan = {
        **METHODS.get(case, {}),
        "epochs": 3,
        "batch_size": 16 if case == "absent" else 15,
        "modality_dropout": 0.25 * (case != "absent"),
    }
    torch.manual_seed(0)
    model = Model(toys.spec(outputs=outputs, training=plan))
    trainer = Trainer(model, rows(case), rows(case, 20), torch.device("cpu"))
    seen = []
    model.encoders["b"].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    with ExitStack() as stack:
        if case == "absent":  # in order, so that rank 0 never sees the second input
            stack.enter_context(patch("torch.randperm", lambda n, generator: torch.arange(n)))
        history = trainer.run()
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, weights)
    losses = [[epoch.train_loss, epoch.valid_loss, *epoch.terms.values()] for epoch in history]
    return {"losses": losses, "seen": sum(seen)}


def main(folder: str) -> None:
    """Do all cases in one group of ranks."""
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    told = {case: train(case, Path(folder, f"{case}-{rank}")) for case in CASES}
    sys.stdout.write(json.dumps(told))
    Ranks.current().wait()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
