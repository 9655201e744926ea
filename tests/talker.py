"""A tiny language model with random weights, in the files of Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polymodal.nn.language.decode import Decoding
from polymodal.nn.language.model import Language
from polymodal.types import Masked

WORDS = ["red", "apple", "old", "bridge", "what", "is", "it", "yes", "no", "green", "pear"]
TEMPLATE = (
    "{% for m in messages %}<start>{{ m['role'] }} {{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant {% endif %}"
)


def tokenizer(pad: bool = True, template: bool = True) -> PreTrainedTokenizerFast:
    """Bytes, a few words, and tokens that frame what is said."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    merges = []
    for word in WORDS:
        done = word[0]
        for letter in word[1:]:
            if done + letter not in vocabulary:
                vocabulary[done + letter] = len(vocabulary)
                merges.append((done, letter))
            done += letter
    found = Tokenizer(models.BPE(vocabulary, merges))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    named = {"bos_token": "<start>", "eos_token": "<end>"} | ({"pad_token": "<pad>"} if pad else {})
    whole = PreTrainedTokenizerFast(tokenizer_object=found, **named)
    whole.chat_template = TEMPLATE if template else None
    return whole


def tiny_language(folder: Path, seed: int = 0, pad: bool = True, template: bool = True, context: int = 256) -> str:
    """Write a model of two layers; its name as a spec has it."""
    torch.manual_seed(seed)
    words = tokenizer(pad, template)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, tie_word_embeddings=True,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return f"hf:{folder}"


def sliding_language(folder: Path) -> str:
    """The same for a model that sees 4 positions only."""
    tiny_language(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return f"hf:{folder}"


def prompts(language: Language, *lengths: int) -> list[torch.Tensor]:
    """Random prompts, each (length, W)."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(length, language.width, generator=generator) for length in lengths]


def batch(rows: list[torch.Tensor]) -> Masked:
    """Prompts of any length as one batch."""
    return Masked.pad(rows, rows[0][0])


GREEDY, SAMPLED = Decoding(tokens=12), Decoding(tokens=12, temperature=0.9, top_k=20, top_p=0.9, seed=7)
