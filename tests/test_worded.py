"""One token per word, around a backbone whose tokens are known."""

import pytest
import torch
from torch import nn

from polymodal.nn.bert import TextBackbone, minilm_tokenizer
from polymodal.nn.spelling import COLUMNS
from polymodal.nn.weights import PACKAGED
from polymodal.nn.worded import SPELT, WordBackbone, WordedEncoder, WordEncoder
from polymodal.types import Masked

pytestmark = pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="the packaged MiniLM is not installed")


class Echo(nn.Module):
    """A net that gives back its ids, their number in the window and how many it sees: (S, L, 3)."""

    def forward(self, ids, mask):
        place = torch.arange(ids.shape[1]).expand_as(ids)
        return torch.stack([ids, place, mask.sum(1, keepdim=True).expand_as(ids)], -1).float()


def backbone(window=8, overlap=2, **settings):
    text = TextBackbone(Echo(), 3, "echo", minilm_tokenizer(), window, overlap)
    return WordBackbone(text, **{"spelling": False, **settings})


def collated(*rows, spelt=False):
    """Rows of (id, word); the spelling of a word is its number, plus one, in every column."""
    given = []
    for row in rows:
        x = torch.tensor(row).view(-1, 2)
        given.append(torch.cat([x, x[:, 1:].expand(-1, COLUMNS) + 1], 1) if spelt else x)
    like = torch.zeros(SPELT + COLUMNS * spelt, dtype=torch.int64)
    return Masked.pad(given, like)


ROW = [[7, 0], [8, 1], [9, 1], [10, 2]]


def test_a_word_is_its_first_subword_without_special_tokens():
    y = backbone()(collated(ROW, [[5, 0]]))
    assert y.values[0, :, 0].tolist() == [7, 8, 10]
    assert y.values[1].tolist() == [[5, 1, 3], [0, 0, 0], [0, 0, 0]]
    assert y.mask.tolist() == [[True] * 3, [True, False, False]]
    assert y.at is not None
    assert y.at[0].flatten().tolist() == [0, 1, 2]


def test_or_the_mean_of_its_subwords():
    y = backbone(pooling="mean")(collated(ROW, [[5, 0]]))
    assert y.values[0, :, 0].tolist() == [7, 8.5, 10]
    assert y.values[1, :, 0].tolist() == [5, 0, 0]


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_long_rows_are_whole_and_each_word_is_seen_from_the_better_window(pooling):
    count = 1000
    row = [[1000 + i, i // 2] for i in range(count)]
    y = backbone(pooling=pooling)(collated(row, ROW))
    assert y.mask.sum(1).tolist() == [count // 2, 3]
    assert y.values[0, :, 0].tolist() == [1000 + 2 * i + (0.5 if pooling == "mean" else 0) for i in range(count // 2)]
    place = y.values[0, 1:-1, 1]  # in windows of 8 with 6 tokens of text: 2 of them shared, one taken from each
    assert place.min() >= 2 if pooling == "first" else 1.5
    assert place.max() <= 6


def test_words_of_one_id_that_stand_side_by_side_stay_apart():
    y = backbone()(collated([[7, 0], [7, 1], [7, 2]]))
    assert y.mask.sum() == 3


def test_holes_in_a_row_change_nothing():
    x = collated(ROW)
    holes = Masked(
        torch.cat([x.values[:, :2], torch.full((1, 2, 2), 99), x.values[:, 2:]], 1),
        torch.tensor([[True, True, False, False, True, True]]),
    )
    for pooling in ("first", "mean"):
        one, two = backbone(pooling=pooling)(x), backbone(pooling=pooling)(holes)
        assert torch.equal(one.values, two.values)
        assert torch.equal(one.mask, two.mask)


def test_spelling_is_handed_on_exactly_whatever_the_net_computes_in():
    net = backbone(spelling=True)
    x = collated([[7, 0], [8, 1], [9, 1], [10, 700]], [[5, 0]], spelt=True)
    x = Masked(x.values.clone(), x.mask)
    x.values[0, 3, SPELT:] = 2044
    assert net.width == 3 + COLUMNS
    assert net.own == 3
    y = net.tokens(net.net(*net.tensors(x)).bfloat16(), x)
    assert y.values.dtype == torch.float32
    assert y.values[0, :, 3].tolist() == [1, 2, 2044]
    assert (y.values[0, 2, 3:] == 2044).all()
    assert not y.values[1, 1:].any()


def test_what_it_does_names_it():
    digests = {backbone(spelling=s, pooling=p).digest for s in (True, False) for p in ("first", "mean")}
    assert len(digests) == 4
    assert all(digest.startswith("echo-w8-2") for digest in digests)


def test_another_net_can_take_its_place():
    one = backbone()
    assert [name for name, _ in one.named_children()] == ["net"]
    one.net = nn.Identity()
    with pytest.raises(TypeError):
        one(collated(ROW))


def test_encoders_add_the_spelling_and_read_nothing_behind_the_mask():
    torch.manual_seed(0)
    net = WordedEncoder(3, 8, spelling=True).eval()
    x = torch.randn(2, 4, 3 + COLUMNS)
    x[..., 3:] = 65.0
    mask = torch.tensor([[True] * 4, [True, False, False, False]])
    y = net(Masked(x, mask))
    plain = net.embed(Masked(x[..., :3], mask))
    torch.testing.assert_close(y.values[0], plain.values[0] + net.spelling(x[0, :, 3:]))
    dirty = x.clone()
    dirty[1, 1:] = 7
    assert torch.equal(net(Masked(dirty, mask)).values[1, 0], y.values[1, 0])
    assert WordedEncoder(3, 8, spelling=False).spelling is None


def test_a_word_encoder_of_text_is_as_before():
    """Its weights have the names and the order that bundles know."""
    assert [name for name, _ in WordEncoder(5, 8).named_parameters()][:4] == [
        "words.weight", "positions.project.weight", "norm.weight", "norm.bias",
    ]  # fmt: skip
