import copy
import json
import unicodedata

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from polymodal.data.cells import content
from polymodal.errors import DataError, SpecError
from polymodal.modalities.words import Words, WordsAugmentation
from polymodal.modalities.words.pieces import MOST
from polymodal.nn import spelling
from polymodal.nn.weights import PACKAGED, Weights
from polymodal.nn.worded import SPELT, UNKNOWN
from polymodal.part import Modality
from polymodal.sentence import Sentence

minilm = pytest.mark.skipif(PACKAGED["minilm"].locate() is None, reason="the packaged MiniLM is not installed")
HARD = [
    "Ångström",
    "A\u030angstro\u0308m",
    "👍🏽",
    "👨\u200d👩\u200d👧",
    "🇫🇷",
    "日本語",
    "مرحبا",
    "שלום",
    "नमस्ते",
    *("\u200b", "\ufeff", "\xad", "\u0301", "a\u200db"),
    *("don't", "U.S.", "http://a.b/c?d=e", "@me", "#tag", "#", "[SEP]", "[UNK]", "½", "ﬁ"),
    "x" * 500,
]
EU = ["EU", "rejects"]


def scratch(**settings):
    return Words(backbone="none", **settings)


def split(text, **settings):
    value = scratch(**settings).read(text).value
    assert all(value.text[start : value.end(i)] == value.words[i] for i, start in enumerate(value.starts))
    return list(value.words)


def said(*words):
    return Sentence.of(words)


# Reading


@pytest.mark.parametrize(
    "cell",
    [EU, tuple(EU), np.array(EU), np.array(EU, object), '["EU", "rejects"]'],
)
def test_a_list_of_words_in_any_form(cell):
    reading = scratch().read(content(cell, media=False).content)
    assert reading.value == said("EU", "rejects")
    assert reading.value.starts == (0, 3)
    assert reading.facts == {"words": 2.0, "characters": 10.0}
    assert not reading.repairs


@pytest.mark.parametrize("cell", ["", "  \n", "\u200b", "\ufeff \u200d", [], "[]"])
def test_no_word_at_all(cell):
    reading = scratch().read(cell)
    assert reading.value is None
    assert reading.repairs == ("empty after cleaning",)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (["a", None], r"word 1 must be a text, got None\. Mend the row"),
        (["a", float("nan")], r"word 1 must be a text, got nan"),
        ([3, "a"], r"word 0 must be a text, got 3"),
        ([["a"], ["b"]], r"word 0 must be a text, got a list\. Give each sentence a row of its own"),
        ([{"text": "a"}], r"got a dict"),
        (["a", ""], r"word 1 must not be blank, got ''"),
        (["a", "\xa0"], r"word 1 must not be blank"),
        ('["a", null]', r"word 1 must be a text, got None"),
        (3.5, r"words must be a list of texts, or one text, got float 3\.5"),
        (b"bytes", r"got bytes"),
        ({"a": 1}, r"got dict"),
        (np.array([["a"], ["b"]]), r"got ndarray"),
    ],
)
def test_cells_that_are_no_words(cell, message):
    with pytest.raises(DataError, match=message):
        scratch().read(cell)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EU rejects  German\tcall.", ["EU", "rejects", "German", "call", "."]),
        ("The U.S. don't pay $3.50 at 10:30!", ["The", "U.S.", "don't", "pay", "$", "3.50", "at", "10:30", "!"]),
        ("https://a.b/c?d=e, or mail x.y@z.org.", ["https://a.b/c?d=e", ",", "or", "mail", "x.y@z.org", "."]),
        ("@me_2 loves #NLP", ["@me_2", "loves", "#NLP"]),
        ("New York-based", ["New", "York", "-", "based"]),
        ("[1] is a note", ["[", "1", "]", "is", "a", "note"]),
        ("[2017]", ["[", "2017", "]"]),
        ("مرحبا بالعالم، أهلا", ["مرحبا", "بالعالم", "،", "أهلا"]),
        ("שלום עולם", ["שלום", "עולם"]),
        ("東京へ行く。", ["東", "京", "へ", "行", "く", "。"]),
        ("a👍🏽👍 👨\u200d👩\u200d👧", ["a", "👍🏽", "👍", "👨\u200d👩\u200d👧"]),
        ("🇫🇷🇩🇪1\ufe0f\u20e3", ["🇫🇷", "🇩🇪", "1\ufe0f\u20e3"]),
        ("e\u0301te\u0301 नमस्ते", ["e\u0301te\u0301", "नमस्ते"]),
        ("so\xadft \u200bzero\u200bwidth\ufeff", ["so\xadft", "zero", "width"]),
        ("\u202bשלום\u202c x", ["שלום", "x"]),
        ("می\u200cخواهم", ["می\u200cخواهم"]),
        ("a\x00b", ["a", "b"]),
    ],
)  # fmt: skip
def test_texts_are_split_where_they_stand(text, expected):
    assert split(text) == expected


def test_chinese_in_words_needs_the_segmenter():
    pytest.importorskip("jieba")
    assert split("我来到北京清华大学", cjk="words") == ["我", "来到", "北京", "清华大学"]
    assert len(split("我来到北京清华大学")) == 9


def test_broken_characters_keep_their_place():
    for cell in ("a \ud83d b", ["a", "\ud83d", "b"]):
        reading = scratch().read(cell)
        assert reading.value == Sentence("a \ufffd b", ("a", "\ufffd", "b"), (0, 2, 4))
        assert reading.repairs == ("broken characters replaced",)
        json.dumps(reading.value.words, ensure_ascii=False).encode()


def test_a_long_sentence_is_cut_and_said():
    reading = scratch(max_words=3).read("one two three four five")
    assert reading.value.words == ("one", "two", "three")
    assert reading.value.text == "one two three four five"
    assert reading.repairs == ("cut after 3 words",)
    assert reading.facts["words"] == 5
    assert not scratch().read(["a"] * 10_000).repairs


def test_splitting_is_linear():
    for text in (
        "a" * 200_000,
        "a." * 100_000,
        "1." * 100_000,
        "a@" * 100_000,
        "👍\u200d" * 60_000,
        "http://" * 20_000,
    ):
        assert split(text) is not None


# Collating


@minilm
@pytest.mark.parametrize("words", [HARD, HARD[::-1], HARD[:1], ["naïve"] * 3])
def test_subwords_are_those_of_is_pretokenized(words):
    part = Words(backbone="minilm")
    value = part.read(words).value
    x = part.collate([None, value])
    tokenizer = part.files()["tokenizer.json"]
    told = Tokenizer.from_buffer(tokenizer).encode(
        [unicodedata.normalize("NFC", word) for word in words], is_pretokenized=True, add_special_tokens=False
    )
    expected = list(zip(told.ids, told.word_ids, strict=True))
    got = [tuple(row) for row in x.values[1, x.mask[1], :2].tolist()]
    lost = set(range(len(words))) - set(told.word_ids)
    assert [row for row in got if row[1] not in lost] == expected
    assert [row for row in got if row[1] in lost] == [(100, word) for word in sorted(lost)]
    assert sorted({word for _, word in got}) == list(range(len(words)))
    assert x.present.tolist() == [False, True]
    assert torch.equal(x.at[1, x.mask[1], 0], x.values[1, x.mask[1], 1].float())


@minilm
def test_every_subword_brings_the_spelling_of_its_word():
    part = Words(backbone="minilm")
    words = ["unaffordably", "US", "us"]
    x = part.collate([said(*words)])
    expected = spelling.spell(words)[x.values[0, :, 1]]
    assert (x.values[0, :, SPELT:].numpy() == expected).all()
    bare = Words(backbone="minilm", spelling=False).collate([said(*words)])
    assert bare.values.shape[2] == SPELT
    assert torch.equal(bare.values, x.values[..., :SPELT])


def test_a_batch_is_its_rows_side_by_side():
    part = scratch(min_count=1).fit([said("Red", "apple"), said("pie")])
    values = [said("red", "Apple", "x"), None, said("pie"), said(*["apple"] * 7)]
    x = part.collate(values)
    assert x.values.shape == (4, 7, SPELT + spelling.COLUMNS)
    for row, value in zip(x.split(), values, strict=True):
        alone = part.collate([value])
        assert torch.equal(row.values, alone.values)
        assert torch.equal(row.mask, alone.mask)
    assert x.values[0, :3, 0].tolist() == [3, 1, UNKNOWN]
    assert not x.values[1].any()
    assert part.collate([]).values.shape[0] == 0


# With a backbone


@minilm
def test_a_words_token_is_that_of_the_reference_network():
    transformers = pytest.importorskip("transformers")
    folder = PACKAGED["minilm"].locate().parent
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, use_safetensors=True).eval()
    rows = [["EU", "rejects", "unaffordable", "boycotts", "."], ["日本", "👍🏽", "مرحبا", "naïve"], ["one"]]
    part = Words(backbone="minilm")
    x = part.collate([said(*row) for row in rows])
    given = tokenizer(rows, is_split_into_words=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, y = model(**given).last_hidden_state, part.backbone()(x)
    for i, row in enumerate(rows):
        first = [given.word_ids(i).index(word) for word in range(len(row))]
        torch.testing.assert_close(
            y.values[i, : len(row), : part.backbone().own], expected[i, first], atol=1e-5, rtol=1e-5
        )
        assert y.mask[i].sum() == len(row)
        assert (y.values[i, : len(row), -spelling.COLUMNS :].numpy() == spelling.spell(row)).all()
    torch.testing.assert_close(part.summary(y)[0], y.values[0, :5, : part.backbone().own].mean(0))


@minilm
def test_ten_thousand_words_in_windows_that_see_both_sides():
    part = Words(backbone="minilm", window=32, overlap=16)
    words = [HARD[i % len(HARD)] if i % 7 == 0 else f"word{i}" for i in range(10_000)]
    value = part.read(words).value
    x = part.collate([value, said("a")])
    backbone = part.backbone()
    fake = torch.zeros(*backbone.tensors(x)[0].shape, backbone.own)
    y = backbone.tokens(fake, x)
    assert y.mask.sum(1).tolist() == [10_000, 1]
    short = part.read(words[:200]).value
    with torch.no_grad():
        windowed = backbone(part.collate([short])).values[0, :, : backbone.own]
        whole = Words(backbone="minilm", window=512, overlap=0)
        inner = whole.collate([Sentence.of(words[60:75])])
        assert inner.mask.sum() > 15
        assert windowed.isfinite().all()
        likeness = torch.cosine_similarity(windowed[61:74], whole.backbone()(inner).values[0, 1:-1, : backbone.own])
    assert likeness.mean() > 0.5


@minilm
def test_settings_change_the_backbone():
    sentence = said("unaffordable", "boycotts", *["word"] * 20)
    found = {}
    for settings in (
        {},
        {"pooling": "mean"},
        {"window": 8, "overlap": 2},
        {"window": 8, "overlap": 4},
        {"spelling": False},
    ):
        part = Words(backbone="minilm", **settings)
        with torch.no_grad():
            y = part.backbone()(part.collate([sentence]))
        assert y.values.shape[1] == 22
        assert part.encoder(8)(y).values.shape == (1, 22, 8)
        found[part.backbone().digest] = y.values[..., : part.backbone().own]
    assert len(found) == 5
    first, mean, short, other, bare = found.values()
    assert torch.equal(first, bare)
    assert not torch.allclose(first[0, 0], mean[0, 0], atol=1e-3)
    assert not torch.allclose(first, short, atol=1e-3)
    assert not torch.allclose(short, other, atol=1e-3)


@minilm
def test_fit_names_the_backbone_and_reads_nothing():
    def values():
        raise AssertionError("read")
        yield

    fitted = Words().fit(values())
    assert fitted.model_dump(exclude_defaults=True) == {"backbone": "minilm"}
    with pytest.raises(SpecError, match="min_count must not be set"):
        Words(min_count=1).fit([])


def test_hub_backbones_are_asked_for(monkeypatch):
    asked = []

    def fake(*given):
        asked.append(given)
        raise SpecError("no network")

    monkeypatch.setattr("polymodal.nn.hub.text_backbone", fake)
    with pytest.raises(SpecError, match="no network"):
        Words(backbone="hf:org/name", window=32, overlap=2).backbone()
    assert asked == [("hf:org/name", 32, 2)]


# From scratch


def test_without_weights_words_are_learned(monkeypatch):
    monkeypatch.setattr(Weights, "locate", lambda self: None)
    part = Words().fit([said("Red", "apple"), said("red", "pie")])
    assert part.pretrained == "none"
    assert part.vocabulary == ("red",)
    assert part.backbone() is None
    assert part.files() == {}


def test_the_vocabulary():
    values = [said("The", "cat", "the"), said("cat", "ran"), None, said("the")]
    assert scratch().fit(values).vocabulary == ("the", "cat")
    assert scratch(min_count=1).fit(values).vocabulary == ("the", "cat", "ran")
    assert scratch(min_count=1, vocabulary_size=1).fit(values).vocabulary == ("the",)
    assert scratch(lowercase=False).fit(values).vocabulary == ("cat", "the")
    composed = scratch(min_count=1).fit([said("e\u0301te\u0301")])
    assert composed.vocabulary == ("été",)
    assert composed.collate([said("été", "e\u0301te\u0301", "x")]).values[0, :, 0].tolist() == [1, 1, 0]


def test_spelling_tells_case_and_unknown_words_apart():
    torch.manual_seed(0)
    values = [said("us", "US", "zzz", "yyy")]
    for told in (True, False):
        part = scratch(spelling=told, vocabulary=("us",), layers=2)
        net = part.encoder(8).eval()
        assert len(net.blocks) == 2
        with torch.no_grad():
            one = net(part.collate([said("us")])).values[0, 0]
            two = net(part.collate([said("US")])).values[0, 0]
        assert torch.allclose(one, two) != told
    assert part.summary(part.collate(values)).shape == (1, 2)


# Variation, noise, pieces


def test_augmentation_keeps_the_number_of_words():
    part = scratch(augmentation=WordsAugmentation(typo=1, lower=0, upper=0))
    value = said("Wonderful", "Boats", "!")
    varied = part.augment(value, np.random.default_rng(0))
    assert len(varied) == 3
    assert varied.words[2] == "!"
    assert all(a != b for a, b in zip(varied.words[:2], value.words, strict=False))
    for case, change in (("lower", str.lower), ("upper", str.upper)):
        part = scratch(augmentation={"typo": 0, "lower": 0, "upper": 0, case: 1})
        assert part.augment(value, np.random.default_rng(0)).words == tuple(map(change, value.words))


@pytest.mark.parametrize("name", ["typos", "ocr", "lowercase"])
def test_noises_grow_and_keep_every_word(name):
    noise = scratch().corruptions[name]
    values = [said(*(f"Il{i}O" for i in range(40)), "a"), None]
    changed = []
    for level in (noise.levels[0], noise.levels[-1]):
        got = noise.apply(values, level, np.random.default_rng(0))
        assert got[1] is None
        assert len(got[0]) == 41
        changed.append(sum(a != b for a, b in zip(got[0].words, values[0].words, strict=True)))
    assert changed[0] < changed[1]
    assert noise.apply(values, 0.0, np.random.default_rng(0))[0] is values[0]


def test_pieces_are_words_where_they_stand():
    value = scratch().read("EU  rejects call.").value
    found = scratch().pieces(value)
    assert found.count == 4
    assert found.keep(np.ones(4, bool)) is value
    assert found.keep(np.zeros(4, bool)) is None
    some = found.keep(np.array([True, False, True, False]))
    assert (some.words, some.starts) == (("EU", "call"), (0, 12))
    assert found.show([1, 2, 3, 4])[1] == {"part": "rejects", "start": 4, "end": 11, "value": 2}
    many = scratch().pieces(said(*["w"] * 100))
    assert many.count == MOST
    assert sum(len(many.keep(row)) for row in np.eye(MOST, dtype=bool)) == 100


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "minilmm"}, "Did you mean 'minilm'"),
        ({"backbone": "minilm", "lowercase": False}, "lowercase must not be set"),
        ({"backbone": "hf:a/b", "min_count": 1}, "min_count must not be set"),
        ({"backbone": "none", "window": 64}, "window must not be set"),
        ({"backbone": "none", "pooling": "mean"}, "pooling must not be set"),
        ({"window": 16, "overlap": 16}, "overlap must be less"),
        ({"max_words": 0}, "greater than or equal to 1"),
        ({"augmentation": {"typo": 0, "lower": 0, "upper": 0}}, "must change something"),
        ({"augmentation": {"lower": 0.6, "upper": 0.6}}, "at most 1"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises((ValidationError, SpecError), match=message):
        Words(**settings)


def test_a_fitted_part_travels():
    part = scratch(min_count=1).fit([said("red", "apple")])
    part.collate([said("red")])
    for other in (copy.deepcopy(part), Modality.parse(json.loads(part.model_dump_json()))):
        assert other == part
        assert torch.equal(other.collate([said("red")]).values, part.collate([said("red")]).values)
    field = part.fields("sentence")[0]
    assert (field.column, field.kind, field.example) == ("sentence", "words", "apple red")
    assert Words(backbone="none").fields("x")[0].example


ADDRESS = "https://example.org/a/long/way/to/go/and/back/again"


@minilm
def test_length_counts_sub_words():
    part = Words(backbone="minilm")
    short, long = Sentence.of(["one", "two", "three"]), Sentence.of([ADDRESS])
    assert part.length(short) == 3 < part.length(long) == int(part.collate([long]).mask.sum())


@minilm
def test_of_a_long_word_the_first_sub_words_are_seen_and_its_spelling():
    few, all_of_it = Words(backbone="minilm", max_subwords=4), Words(backbone="minilm", max_subwords=64)
    said = ["see", ADDRESS, "now"]
    assert few.read(said).repairs == ("a word cut after 4 sub-words",)
    assert all_of_it.read(said).repairs == few.read(["see", "you", "now"]).repairs == ()
    cut, whole = (part.collate([Sentence.of(said)]).values[0] for part in (few, all_of_it))
    assert cut[:, 1].tolist() == [0, 1, 1, 1, 1, 2]
    assert len(whole) > 16
    assert torch.equal(cut[:5], whole[:5])
    assert torch.equal(cut[-1], whole[-1])
