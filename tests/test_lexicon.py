import threading

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from polymodal.modalities.words import lexicon
from polymodal.modalities.words.lexicon import Lexicon
from polymodal.nn.bert import Subwords
from polymodal.nn.spelling import spell

CORPUS = ["the red apple of the north", "a red boat in the harbour", "Don't read the northern paper, ok?"] * 5
WORDS = ["the", "red", "unheard", "Don't", "apple", "日本", "👍", ",", "x-y"]


def trained(kind):
    """A tokenizer that learned a little, and the same as one that takes words one by one."""
    if kind == "wordpiece":
        tokenizer, trainer = Tokenizer(models.WordPiece(unk_token="[UNK]")), trainers.WordPieceTrainer
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    elif kind == "unigram":
        tokenizer, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    elif kind == "prepended":  # as Llama's
        tokenizer, trainer = Tokenizer(models.BPE(unk_token="[UNK]")), trainers.BpeTrainer
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "bytes with space")
        tokenizer.decoder = decoders.ByteLevel()
    more = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()} if kind.startswith("bytes") else {}
    more |= {"unk_token": "[UNK]"} if kind == "unigram" else {}
    special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(CORPUS, trainer(vocab_size=340, special_tokens=special, show_progress=False, **more))
    pair = [("[CLS]", tokenizer.token_to_id("[CLS]")), ("[SEP]", tokenizer.token_to_id("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=pair)
    wordwise = Tokenizer.from_str(tokenizer.to_str())
    if kind == "bytes":  # as transformers demands of it for words
        wordwise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return Subwords(tokenizer, 0, 0, 128), wordwise


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "prepended", "bytes", "bytes with space"])
def test_words_are_tokenised_as_behind_a_space(kind):
    subwords, wordwise = trained(kind)
    made = Lexicon(subwords)
    ids, counts, spelt = made.look_up(WORDS)
    told = wordwise.encode(WORDS, is_pretokenized=True, add_special_tokens=False)
    assert ids.tolist() == told.ids
    assert np.repeat(np.arange(len(WORDS)), counts).tolist() == told.word_ids
    assert (spelt == spell(WORDS)).all()
    assert bool(made._lead) == (kind == "bytes")
    if kind != "prepended":  # which has tokens of several words
        text = wordwise.encode("the red apple", add_special_tokens=False).ids
        assert made.look_up(["the", "red", "apple"])[0].tolist() == text


def test_what_is_known_is_not_tokenised_again(monkeypatch):
    subwords, _ = trained("wordpiece")
    asked = []
    real = Subwords.ids
    monkeypatch.setattr(Subwords, "ids", lambda self, texts: asked.extend(texts) or real(self, texts))
    made = Lexicon(subwords)
    asked.clear()
    first = made.look_up(["the", "red", "the"])
    again = made.look_up(["the", "red", "the"])
    assert sorted(asked) == ["red", "the"]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert [len(x) for x in made.look_up([])] == [0, 0, 0]


@pytest.mark.parametrize("bound", ["MOST", "LONGEST"])
def test_it_does_not_grow_without_end(monkeypatch, bound):
    monkeypatch.setattr(lexicon, bound, 12)
    subwords, _ = trained("wordpiece")
    made = Lexicon(subwords)
    for i in range(40):
        words = [f"w{i}", f"w{i + 1}", "red"]
        ids, counts, _ = made.look_up(words)
        assert ids.tolist() == [x for row in subwords.ids(words) for x in row]
        assert len(counts) == 3
        assert len(made._known.numbers) <= 12
        assert made._known.characters <= 12 if bound == "LONGEST" else True
    assert len(made.look_up([f"v{i}" for i in range(50)])[1]) == 50


def test_threads_see_whole_words():
    subwords, _ = trained("bytes")
    made, faults = Lexicon(subwords), []

    def ask(seed):
        rng = np.random.default_rng(seed)
        for _ in range(50):
            words = [f"w{i}" for i in rng.integers(0, 500, 20)]
            expected = [x for row in subwords.ids([" " + word for word in words]) for x in row]
            if made.look_up(words)[0].tolist() != expected:
                faults.append(words)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_without_a_tokenizer_a_word_is_one_subword():
    ids, counts, _ = Lexicon(None).look_up(WORDS)
    assert ids.tolist() == [0] * len(WORDS)
    assert counts.tolist() == [1] * len(WORDS)
