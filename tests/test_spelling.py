import pytest
import torch

from polymodal.nn.spelling import CHARACTERS, COLUMNS, HEAD, KNOWN, SHAPES, TAIL, Spelling, shape, spell


@pytest.mark.parametrize(
    ("words", "case", "digits"),
    [
        (("red", "d'accord", "été", "ыж"), 1, 0),
        (("Red", "A", "Été", "O'hara", "-Red"), 2, 0),
        (("NATO", "U.S.", "ЕС"), 3, 0),
        (("iPhone", "McDonald", "eBay", "NaCl"), 4, 0),
        (("日本", "مرحبا", "...", "👍", "\u200b"), 0, 0),
        (("b2", "4dbling"), 1, 1),
        (("B2B", "MP3"), 3, 1),
        (("2017", "3.5", "10:30", "-1", "٣"), 0, 2),
        (("3日",), 0, 1),
    ],
)
def test_shapes_by_hand(words, case, digits):
    assert {shape(word) for word in words} == {1 + 3 * case + digits}
    assert 1 + 3 * case + digits < SHAPES


def test_every_integer_is_small_and_padding_is_zero():
    words = ["a", "A", "e\u0301", "日本語", "👍🏽", "\U0010ffff", "\x00", "x" * 5000, "\ufffd"]
    made = spell(words)
    assert made.shape == (len(words), COLUMNS)
    assert 0 <= made.min() <= made.max() < CHARACTERS <= 2048
    assert (made == torch.from_numpy(made).half().numpy()).all(), "half precision must hold them"
    assert ((made[:, 1:] > 0).sum(1) == [1, 1, 2, 3, 2, 1, 1, HEAD + TAIL, 1]).all()
    assert (made[:, 1:][made[:, 1:] > 0] > 0).all()
    assert made[0, 1] == ord("a")
    assert made[1, 1] == ord("A")
    assert made[3, 1] >= KNOWN


def test_a_long_word_is_told_by_its_ends():
    long = spell(["abcdefghij" + "-" * 40 + "uvwxyz", "abcdefghijuvwxyz"])
    assert (long[0, 1:] == long[1, 1:]).all()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Spelling(8).eval()


def given(words):
    return torch.from_numpy(spell(words)).float()


def test_equals_a_convolution_word_by_word(net):
    words = ["Red", "a", "unaffordably", "日本"]
    got = net(given(words))
    for word, row in zip(words, got, strict=True):
        letters = net.characters(given([word]).long()[0, 1 : 1 + len(word)])  # (letters, 30), no padding at all
        found = net.convolve(letters.T[None])[0].amax(1)
        expected = net.project(torch.cat([found, net.shapes.weight[shape(word)]]))
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


def test_case_and_letters_are_seen_and_rows_are_apart(net):
    got = net(given(["us", "US", "su", "us"])[None])
    assert got.shape == (1, 4, 8)
    assert torch.equal(got[0, 0], got[0, 3])
    assert (got[0, 0] - got[0, 1]).abs().max() > 0.01
    assert (got[0, 0] - got[0, 2]).abs().max() > 0.01


def test_padding_and_nonsense_are_no_fault(net):
    nothing = net(torch.zeros(1, 2, COLUMNS))
    assert nothing.isfinite().all()
    assert net(torch.randn(2, 3, COLUMNS) * 5000).isfinite().all()
    assert torch.equal(net(given(["us"]).long()), net(given(["us"])))


def test_dropout_is_for_training_only(net):
    x = given(["unaffordably"])
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_initial_values_follow_the_paper(net):
    table = net.characters.weight
    assert not table[0].any()
    assert 0.28 < table.abs().max() < (3 / 30) ** 0.5 + 1e-6
