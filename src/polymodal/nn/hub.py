"""Encoders in the Hugging Face format, from the hub or a folder: the extra ``hub``."""

from __future__ import annotations

import hashlib
import math
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.errors import BundleError, SpecError
from polymodal.nn import weights
from polymodal.nn.backbone import Backbone
from polymodal.nn.bert import Subwords, TextBackbone
from polymodal.types import Masked

SAMPLE_RATE = 16_000
_RESIZE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_AUDIO = {"wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat", "data2vec-audio", "wav2vec2-conformer"}


class _Hidden(nn.Module):
    """A model's last hidden states from one tensor, or from one and a mask."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Run the model. (B, T, W), or (B, W, height, width) from a convolutional one."""
        more = {} if mask is None else {"attention_mask": mask.long()}
        return self.model(x, **more).last_hidden_state


class HubImage(Backbone):
    """uint8 images (B, 1, 3, H, W) -> patch tokens (B, T, W) placed at (y, x), as shares of the image.

    A class token and registers are left out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, settings: dict[str, Any], digest: str) -> None:
        super().__init__()
        config: Any = model.config
        sizes = settings.get("crop_size") or settings.get("size") or getattr(config, "image_size", 224)
        sizes = sizes if isinstance(sizes, dict) else {"height": sizes, "width": sizes}
        edge = sizes.get("shortest_edge", 224)
        self.size = int(sizes.get("height", edge)), int(sizes.get("width", edge))
        self.patch, self.resize = (
            getattr(config, "patch_size", None),
            _RESIZE.get(settings.get("resample", 3), "bicubic"),
        )
        normalise = settings.get("do_normalize", True)
        scale = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
        mean = settings.get("image_mean") if normalise else None
        std = settings.get("image_std") if normalise else None
        self.register_buffer("mean", torch.tensor(mean or [0.0] * 3).view(3, 1, 1) / scale, persistent=False)
        self.register_buffer("std", torch.tensor(std or [1.0] * 3).view(3, 1, 1) / scale, persistent=False)
        self.net, self.digest = _Hidden(model), f"{digest}-{self.size[0]}x{self.size[1]}"
        hidden = getattr(config, "hidden_size", None) or config.hidden_sizes[-1]
        self.width = int(hidden)

    def tensors(self, x: Masked) -> tuple[Tensor, ...]:
        """Pixels of the model's own size and scale. (B, 3, height, width)."""
        pixels = x.values[:, 0].float()
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = functional.interpolate(pixels, self.size, mode=self.resize, antialias=True).clamp(0, 255)
        return ((pixels - self.mean) / self.std,)

    def tokens(self, y: Tensor, x: Masked) -> Masked:
        """Place the patches."""
        if y.ndim == 4:
            rows, columns = y.shape[-2:]
            y = y.flatten(2).transpose(1, 2)
        else:
            rows, columns = self._grid(y.shape[1])
            y = y[:, y.shape[1] - rows * columns :]
        down, right = ((torch.arange(n, device=y.device) + 0.5) / n for n in (rows, columns))
        at = torch.cartesian_prod(down, right).expand(len(y), -1, -1)
        return Masked(y, x.mask[:, :1].expand(-1, rows * columns), at)

    def _grid(self, count: int) -> tuple[int, int]:
        """Rows and columns of patches among ``count`` tokens, of which the first may be special."""
        rows, columns = (edge // self.patch if isinstance(self.patch, int) else count for edge in self.size)
        if rows * columns <= count:
            return rows, columns
        return math.isqrt(count), math.isqrt(count)  # a net that merges its patches, with a square image


class HubAudio(Backbone):
    """Waveforms (B, N) at 16 kHz -> hidden states (B, T, W) placed in the middle of their frame, in seconds.

    Each clip runs at its own length: many of these models normalise over all of a padded batch.
    """

    def __init__(self, model: nn.Module, settings: dict[str, Any], digest: str) -> None:
        super().__init__()
        config: Any = model.config
        self.strides = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self.hop = math.prod(config.conv_stride)
        self.field = 1  # samples that one hidden state is made of
        for kernel, stride in reversed(self.strides):
            self.field = (self.field - 1) * stride + kernel
        self.normalise = bool(settings.get("do_normalize", True))
        self.net, self.width, self.digest = _Hidden(model), int(config.hidden_size), digest

    def forward(self, x: Masked) -> Masked:
        """Hidden states of collated waveforms. Every row must be present."""
        return Masked.join([self.tokens(self.net(*self.tensors(row)), row) for row in x.split()])

    def dynamic(self) -> list[dict[int, str]]:
        """Samples vary."""
        return [{1: "samples"}]

    def tensors(self, x: Masked) -> tuple[Tensor, ...]:
        """Waveforms of zero mean and unit variance where the model wants that, at least a frame long. (B, N)."""
        waves = x.values.masked_fill(~x.mask, 0.0)
        if self.normalise:
            count = x.mask.sum(1, keepdim=True)
            mean = waves.sum(1, keepdim=True) / count
            variance = (waves - mean).masked_fill(~x.mask, 0.0).square().sum(1, keepdim=True) / count
            waves = ((waves - mean) / (variance + 1e-7).sqrt()).masked_fill(~x.mask, 0.0)
        return (functional.pad(waves, (0, max(0, self.field - waves.shape[1]))),)

    def tokens(self, y: Tensor, x: Masked) -> Masked:
        """Mask the frames behind each clip; positions in seconds."""
        frames = x.mask.sum(1).clamp(min=self.field)
        for kernel, stride in self.strides:
            frames = torch.div(frames - kernel, stride, rounding_mode="floor") + 1
        steps = torch.arange(y.shape[1], device=y.device)
        mask = steps < frames[:, None]
        at = ((steps * self.hop + self.field / 2) / SAMPLE_RATE).expand(len(y), -1).unsqueeze(2)
        return Masked(y.masked_fill(~mask.unsqueeze(2), 0.0), mask, at)


def text_backbone(name: str, window: int = 128, overlap: int = 16) -> TextBackbone:
    """Load a text encoder; of an encoder-decoder model, its encoder.

    Args:
        name: "hf:org/name" or "hf:folder".
        window: tokens in a window, special tokens included.
        overlap: tokens that two windows share.

    Raises:
        SpecError: the extra is not installed, or the window does not fit.
        BundleError: the model cannot be fetched, or is no text encoder.
    """
    tokenizer = text_tokenizer(name)
    model = _model(name, "input_ids", "text_model")
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    width, digest = int(model.config.hidden_size), _digest(model)
    return _named(TextBackbone(_Hidden(model), width, digest, tokenizer, window, overlap), name)


@cache
def text_tokenizer(name: str) -> Subwords:
    """Load the tokenizer of a text encoder, once per process.

    Args:
        name: as for `text_backbone`.

    Raises:
        SpecError: the extra is not installed.
        BundleError: the tokenizer cannot be fetched, or has no fast version.
    """
    tokenizer = _fetch(name, "AutoTokenizer", "from_pretrained", trust_remote_code=False)
    config = _fetch(name, "AutoConfig", "from_pretrained", trust_remote_code=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise BundleError(f"{name}: the tokenizer must have a tokenizer.json, got none. Choose another model.")
    pad = tokenizer.pad_token_id or 0
    limit = min(int(tokenizer.model_max_length), getattr(config, "max_position_embeddings", None) or 10**9)
    if config.model_type in {"roberta", "xlm-roberta", "camembert", "mpnet"}:
        limit = min(limit, config.max_position_embeddings - pad - 1)  # their positions count on from the padding's id
    unknown = tokenizer.unk_token_id
    return Subwords(backend, pad, pad if unknown is None else unknown, limit)


def image_backbone(name: str) -> HubImage:
    """Load an image encoder; of an image-text model, its image side.

    Args:
        name: "hf:org/name" or "hf:folder".

    Raises:
        SpecError: the extra is not installed.
        BundleError: the model cannot be fetched, or is no image encoder.
    """
    model = _model(name, "pixel_values", "vision_model")
    settings, _ = _fetch(name, "ImageProcessingMixin", "get_image_processor_dict")
    return _named(HubImage(model, settings, _digest(model)), name)


def audio_backbone(name: str) -> HubAudio:
    """Load a sound encoder that takes waveforms at 16 kHz (wav2vec 2.0 and its kin).

    Args:
        name: "hf:org/name" or "hf:folder".

    Raises:
        SpecError: the extra is not installed.
        BundleError: the model cannot be fetched, or takes no waveforms.
    """
    model = _model(name, "input_values")
    settings, _ = _fetch(name, "FeatureExtractionMixin", "get_feature_extractor_dict")
    config: Any = model.config
    rate = settings.get("sampling_rate", SAMPLE_RATE)
    if config.model_type not in _AUDIO or rate != SAMPLE_RATE or getattr(config, "add_adapter", False):
        raise BundleError(
            f"{name}: must take waveforms at {SAMPLE_RATE} Hz, like one of {sorted(_AUDIO)}, "
            f"got {config.model_type!r} at {rate} Hz. Choose another model."
        )
    return _named(HubAudio(model, settings, _digest(model)), name)


def _named(backbone: Any, name: str) -> Any:
    """Let a backbone know the hub model it is made of."""
    backbone.hub = name
    return backbone


def _model(name: str, takes: str, part: str = "") -> Any:
    """Load a model, or its ``part`` if it has one, that takes ``takes``. All weights must be there."""
    load = {"output_loading_info": True, "use_safetensors": True, "dtype": torch.float32}
    model, info = _fetch(name, "AutoModel", "from_pretrained", trust_remote_code=False, **load)
    model = getattr(model, part, model)
    if missing := [key for key in info["missing_keys"] if not _is_spare(key)]:
        raise BundleError(f"{name}: weights must be complete, {sorted(missing)[0]} is missing. Choose another model.")
    if model.main_input_name != takes:
        raise BundleError(f"{name}: must take {takes}, got a model of {model.main_input_name}. Choose another model.")
    return model.eval()


def _is_spare(key: str) -> bool:
    """Whether a weight has no part in hidden states; such weights may be missing and drawn at random."""
    return "pooler." in key or key.endswith("masked_spec_embed")


def _fetch(name: str, kind: str, method: str, **more: Any) -> Any:
    """Call a class method of transformers on the model's folder or its name on the hub."""
    try:
        import transformers
    except ImportError as error:
        raise SpecError(
            f"backbone {name!r} must be loaded with transformers, which is not installed. "
            'Run: pip install "polymodal[hub]"'
        ) from error
    source = str(weights.hub_folder(name) or name.removeprefix("hf:"))
    try:
        return getattr(getattr(transformers, kind), method)(source, local_files_only=Path(source).is_dir(), **more)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BundleError(
            f"{name}: must be a folder, or a model that the Hugging Face hub has as safetensors, got: {reason} "
            "Check the name and the network."
        ) from error


def copy_model(name: str, folder: Path) -> None:
    """Copy a hub model's files, as they are on this machine, so that a bundle can hold them."""
    from huggingface_hub import snapshot_download

    source = weights.hub_folder(name) or Path(name.removeprefix("hf:"))
    found = source if source.is_dir() else Path(snapshot_download(str(source), local_files_only=True))
    shutil.copytree(found, folder / weights.hub_place(name))


def _digest(model: nn.Module) -> str:
    """Hash of the weights and of what they are called."""
    found = hashlib.sha256(type(model).__name__.encode())
    for key, tensor in sorted(model.state_dict().items()):
        if not _is_spare(key):
            found.update(f"{key} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"hub-{found.hexdigest()[:32]}-1"
