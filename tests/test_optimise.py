import subprocess
import sys

import torch

from polymodal.nn.optimise import AdamW, minimise


def test_adamw_takes_the_steps_of_torch():
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(4))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    mine = AdamW([{"params": ours[:1], "weight_decay": 0.1}, {"params": ours[1:], "weight_decay": 0.0}])
    other = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": 0.1}, {"params": theirs[1:], "weight_decay": 0.0}]
    )
    for k in range(5):
        for params, optimizer in ((ours, mine), (theirs, other)):
            optimizer.zero_grad()
            sum((p * (k + 1)).sin().sum() for p in params).backward()
        mine.step(1e-2 / (k + 1))
        for group in other.param_groups:
            group["lr"] = 1e-2 / (k + 1)
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q)


def test_adamw_goes_on_from_a_kept_state_and_leaves_unused_parameters_alone():
    def run(start: int, p: torch.nn.Parameter, optimizer: AdamW) -> None:
        for k in range(start, start + 3):
            optimizer.zero_grad()
            (p * k).cos().sum().backward()
            optimizer.step(0.1)

    p, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))
    first = AdamW([{"params": [unused, p], "weight_decay": 0.1}])
    run(1, p, first)
    q = torch.nn.Parameter(p.detach().clone())
    second = AdamW([{"params": [torch.nn.Parameter(torch.ones(2)), q], "weight_decay": 0.1}])
    second.load({name: t.clone() for name, t in first.tensors().items()})
    run(4, p, first)
    run(4, q, second)
    assert torch.equal(p, q)
    assert torch.equal(unused, torch.ones(2))


def test_minimise_finds_the_minimum_of_a_badly_scaled_quadratic_and_of_rosenbrock():
    scales = torch.logspace(0, 2, 20)
    target = torch.linspace(-1, 1, 20)
    found = minimise(lambda x: (scales * (x - target).square()).sum(), torch.zeros(20), 200)
    torch.testing.assert_close(found, target, atol=1e-3, rtol=0)
    valley = minimise(lambda x: (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2, torch.tensor([-1.2, 1.0]), 200)
    torch.testing.assert_close(valley, torch.ones(2), atol=1e-2, rtol=0)


def test_minimise_never_ends_above_its_start():
    start = torch.tensor([3.0])
    found = minimise(lambda x: x.abs().sqrt().sum(), start, 3)
    assert found.abs().item() <= 3.0


def test_neither_imports_the_compiler():
    code = (
        "import sys, torch; from polymodal.nn.optimise import AdamW, minimise; p = torch.nn.Parameter(torch.ones(2));"
        "o = AdamW([{'params': [p], 'weight_decay': 0.}]); p.sum().backward(); o.step(.1); o.zero_grad();"
        "minimise(lambda x: x.square().sum(), torch.ones(2), 3); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
