"""A tiny language model with random weights, in the files of Hugging Face."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
