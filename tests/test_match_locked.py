"""match: inputs that keep their pretrained features, and those that learn to meet them."""

import pytest
import torch
from torch.nn import functional

import polymodal as pm
from polymodal.errors import SpecError
from polymodal.model import Model
from polymodal.nn.blocks import LockedEncoder, SummaryEncoder
from polymodal.spec import Spec
from polymodal.tasks.match.head import BESIDE, MatchHead
from polymodal.tracing import answerer
from polymodal.types import Fused, Masked
from test_match import flags

WIDTH = 32
SHAPE = {"type": "image", "backbone": "hog", "size": 32, "grid": 2, "column": "image"}  # 32 wide, and no weights


def settings(*locked, **others) -> dict:
    outputs = {"sides": [["image", "more"], "text"], "locked": list(locked), "column": "kind"} | others
    small = {"type": "image", "backbone": "none", "size": 32}
    return {
        "inputs": {"image": SHAPE, "more": SHAPE, "small": small, "text": {"type": "text", "backbone": "none"}},
        "outputs": {"y": {"type": "match", **outputs}},
        "dim": WIDTH,
    }


def rows(count=6) -> dict[str, Masked]:
    torch.manual_seed(0)
    return {name: Masked(torch.rand(count, 1, WIDTH), torch.ones(count, 1) > 0) for name in ("image", "more")}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"locked": ["imag"]}, "locked must name inputs of the sides .* got 'imag'. Did you mean 'image'"),
        ({"locked": ["small"]}, "locked must name inputs of the sides"),
        ({"locked": ["text"]}, "locked must name inputs with a backbone, got 'text'"),
        ({"locked": ["image", "more"], "sides": ["image", "more"]}, "locked must leave an input to be learned"),
        ({"locked": ["image"], "width": 16}, "dim and width must be 32, that of the locked 'image', got 32 and 16"),
    ],
)
def test_what_cannot_be_locked_is_refused(changed, said):
    with pytest.raises(SpecError, match=said):
        Spec.parse(settings(**changed) if "locked" not in changed else settings(*changed.pop("locked"), **changed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dim": 16}, "outputs.y: dim and width must be 32, that of the locked 'image', got 16 and 16"),
        ({"fusion": "attention"}, "outputs.y: locked must name inputs that reach the model as one vector, got 'image'"),
        ({"training": {"finetune": {"image": {}}}}, "outputs.y: locked must not name what is fine-tuned, got 'image'"),
    ],
)
def test_a_spec_refuses_a_lock_that_it_would_break(changed, said):
    with pytest.raises(SpecError, match=said):
        Spec.parse(settings("image") | changed)


def test_a_locked_token_is_the_centred_feature_of_length_one():
    encoder, x = LockedEncoder(4), torch.tensor([[[1.0, 2, 3, 4]], [[3, 2, 1, 0]]])
    encoder.adapt(x[:, 0])
    encoder.adapt(x[:0, 0])  # no rows tell nothing
    found = encoder(Masked(x, torch.ones(2, 1) > 0)).values[:, 0]
    torch.testing.assert_close(found[0], functional.normalize(torch.tensor([-1.0, 0, 1, 2]), dim=0))
    torch.testing.assert_close(found[1], -found[0])
    assert not list(encoder.parameters())


def test_a_locked_side_is_its_token_and_others_of_its_group_start_as_small_corrections():
    torch.manual_seed(0)
    tokens = {n: Masked(functional.normalize(torch.randn(50, 1, 64), dim=-1), torch.ones(50, 1) > 0) for n in "abc"}
    fused = Fused(torch.zeros(50, 64), tokens)
    head = MatchHead([["a", "b"], ["c"]], 64, 64, 0.1, False, ["a", "c"])
    near, kept = head(fused)[:, :2].unbind(1)
    torch.testing.assert_close(kept, tokens["c"].values[:, 0])
    assert (near * tokens["a"].values[:, 0]).sum(1).min() > 0.99
    assert not torch.equal(near, tokens["a"].values[:, 0])
    assert {n for n, _ in head.named_parameters()} == {"log_scale", "project.@a.log_factor", "project.@b.weight"}
    assert head.project["b"].weight.std().item() == pytest.approx(BESIDE / 64, rel=0.1)
    head.project["a"].log_factor.data.fill_(-9.0)  # nearly nothing: the other one is left
    alone = functional.normalize(head.project["b"](tokens["b"].values[:, 0]), dim=-1)
    assert (head(fused)[:, 0] * alone).sum(1).mean() > 0.9


def test_only_a_model_with_a_lock_has_tokens_without_a_norm(tmp_path):
    free, held = (Model(Spec.parse(settings(*locked)).model_copy()) for locked in ((), ("image",)))
    assert isinstance(free.encoders["image"], SummaryEncoder)
    assert isinstance(held.encoders["image"], LockedEncoder)
    norms = [any(isinstance(x, torch.nn.LayerNorm) for x in m.encoders["more"].modules()) for m in (free, held)]
    assert norms == [True, False]


def test_a_locked_space_is_learned_saved_and_traced(tmp_path):
    spec = settings("image", sides=[["image", "more"], "text"])
    del spec["inputs"]["small"]
    spec["inputs"]["text"]["min_count"] = 1
    plan = {"epochs": 25, "batch_size": 48, "learning_rate": 0.01, "modality_dropout": 0.0, "dropout": 0.0, "refit": 0}
    model = pm.fit(spec | {"training": plan}, flags(6), cache=False)
    held = flags(2, first=1000)
    assert model.evaluate(held).to_dict()["tasks"]["y"]["scores"]["recall_at_10"] > 0.75
    again = pm.load(model.save(tmp_path / "model"))
    assert again.predict(held) == model.predict(held)
    assert Spec.parse(again.spec.model_dump(mode="json")).outputs["y"].fixed == ("image",)
    x = rows()
    x["image"] = x["image"].without(torch.arange(6) < 2)
    run, own = answerer(again.model, tmp_path), again.model.answer(x).decoded["y"]
    torch.testing.assert_close(run(x)["y"], own, atol=1e-4, rtol=1e-4, equal_nan=True)
    assert torch.equal(again.model.encoders["image"].mean, model.model.encoders["image"].mean)
    assert again.model.encoders["image"].mean.abs().sum() > 0
