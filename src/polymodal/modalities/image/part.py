"""The image modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional

from polymodal.errors import SpecError, suggest
from polymodal.modalities.image.augment import ImageAugmentation
from polymodal.modalities.image.clean import equalise, median, unify
from polymodal.modalities.image.corrupt import corruptions
from polymodal.modalities.image.decode import PILLOW_LIMIT, decode
from polymodal.modalities.image.encoder import SmallImageEncoder
from polymodal.modalities.image.pieces import pieces
from polymodal.modalities.image.sample import sample
from polymodal.nn import hub
from polymodal.nn.backbone import Backbone
from polymodal.nn.blocks import TokenEncoder
from polymodal.nn.efficientnet import REDUCTION, WIDTH, efficientnet_lite0
from polymodal.nn.hog import hog
from polymodal.nn.named import named_classes
from polymodal.nn.weights import PACKAGED
from polymodal.part import Corruption, Modality, Pieces, Reading
from polymodal.reading import Field as FormField
from polymodal.types import Masked, tracing

LITE, HOG, NAMES = "efficientnet-lite0", "hog", "imagenet-names"
THUMBNAIL = 8  # side of what `Image.summary` sees without a backbone


class Image(Modality):
    """Photographs, drawings, scans: JPEG, PNG, WebP, GIF (first frame), BMP, TIFF, PPM, JPEG 2000, AVIF.

    Every image becomes upright 8 bit RGB of one size. Colour profiles are not applied.

    Attributes:
        pretrained: in a spec ``backbone``: "efficientnet-lite0", "hf:org/name" for a model from Hugging Face, "hog" for
            histograms of gradients, which tell shapes (letters, symbols, drawings) and need no weights,
            "imagenet-names" for what efficientnet-lite0 takes the image for, by the names of its 1,000 classes in the
            space of the text backbone "minilm", "none" for a small network learned from scratch, "auto" for
            efficientnet-lite0 where its weights are installed, else none.
        size: side in pixels; when not given 224 with a pretrained backbone, 64 with "hog" or from scratch.
        grid: an image becomes grid x grid tokens, 2 x 2 when not given; with "hog" one token of grid x grid histograms,
            8 x 8 when not given. Not for "imagenet-names", which gives one token, nor for "hf:", whose models make
            their own.
        resize: how an image becomes square: "stretch" keeps everything at the cost of its proportions, "crop" keeps
            the middle, "pad" adds grey margins.
        max_pixels: larger images are refused before they are decoded, since a small file can hold a huge one.
        denoise: remove specks by a 3 x 3 median, at the file's own resolution.
        equalize: raise local contrast (CLAHE on the luminance).
        augmentation: how training images are varied; not at all when not given.
    """

    model_config = ConfigDict(serialize_by_alias=True)
    media: ClassVar[bool] = True

    type: Literal["image"] = "image"
    pretrained: str = Field("auto", alias="backbone")
    size: int | None = Field(None, ge=16, le=2048)
    grid: int | None = Field(None, ge=1, le=16)
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    max_pixels: int = Field(default=100_000_000, ge=1, le=PILLOW_LIMIT)
    denoise: bool = False
    equalize: bool = False
    augmentation: ImageAugmentation | None = None

    @field_validator("pretrained")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        known = ("auto", LITE, HOG, NAMES, "none", "hf:org/name")
        if value not in known[:-1] and not (value.startswith("hf:") and len(value) > 3):
            raise ValueError(f"backbone must be one of {list(known)}, got {value!r}.{suggest(value, known)}")
        return value

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if not self.gridded and self.grid is not None:
            raise ValueError(f"grid must not be set with backbone {self.pretrained!r}, which ignores it. Leave it out.")
        if self.pretrained == HOG:
            least = 2 + 2 * self.cells
        else:
            least = self.cells * (REDUCTION if self.pretrained in ("auto", LITE, NAMES) else 16)
        if self.size is not None and not self.pretrained.startswith("hf:") and self.size < least:
            raise ValueError(
                f"size must be at least {least} for a grid of {self.cells} with backbone {self.pretrained!r}, "
                f"got {self.size}. Raise size or lower grid."
            )
        return self

    @property
    def name(self) -> str:
        """The backbone that is used: "auto" resolved by what is installed."""
        if self.pretrained != "auto":
            return self.pretrained
        return "none" if PACKAGED[LITE].locate() is None else LITE

    @property
    def side(self) -> int:
        """The size that is used, in pixels."""
        return self.size or (64 if self.name in ("none", HOG) else 224)

    @property
    def cells(self) -> int:
        """The grid that is used."""
        if not self.gridded:
            return 1
        return self.grid or (8 if self.pretrained == HOG else 2)

    @property
    def gridded(self) -> bool:
        """Whether ``grid`` says how many tokens an image becomes."""
        return self.pretrained != NAMES and not self.pretrained.startswith("hf:")

    def fields(self, name: str) -> tuple[FormField, ...]:
        """An image file; the example is a small PNG."""
        return (FormField(self.columns(name)[0], "image", sample()),)

    def read(self, content: bytes) -> Reading:
        """Decode an image file, set it upright, on white, in RGB, clean it and bring it to size.

        Returns:
            (3, size, size) uint8; width and height of the file's image in pixels.

        Raises:
            DataError: no image, damaged, cut off or too large.
        """
        # Twice the size leaves the smooth reduction to `unify`; specks must be removed before any reduction.
        least = None if self.denoise else 2 * self.side
        image = decode(content, self.max_pixels, least)
        pixels = median(image.pixels) if self.denoise else image.pixels
        x = unify(pixels, self.side, self.resize)
        x = equalise(x) if self.equalize else x
        return Reading(x, image.repairs, {"width": float(image.width), "height": float(image.height)})

    def fit(self, values: Iterable[Any | None]) -> Self:
        """Name the backbone, size and grid. Reads no value.

        Raises:
            SpecError: they do not fit one another.
        """
        grid = self.cells if self.gridded else None
        named = {"backbone": self.name, "size": self.side, "grid": grid}
        try:
            return type(self).model_validate(self.model_dump() | named)
        except ValidationError as error:
            told = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise SpecError(f"image: {told}") from None

    @property
    def augments(self) -> bool:
        """Whether training images are varied."""
        return self.augmentation is not None

    def augment(self, value: Tensor, rng: np.random.Generator) -> Tensor:
        """A varied copy of an image (3, size, size) uint8."""
        return value if self.augmentation is None else self.augmentation.apply(value, rng)

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        """Blur, noise, JPEG, contrast and occlusion."""
        return corruptions(self.side)

    def pieces(self, value: Tensor) -> Pieces | None:
        """A grid of regions."""
        return pieces(value)

    def collate(self, values: Sequence[Tensor | None]) -> Masked:
        """Images -> (B, 1, 3, size, size) uint8."""
        rows = [None if x is None else x[None] for x in values]
        return Masked.pad(rows, torch.zeros(3, self.side, self.side, dtype=torch.uint8))

    def backbone(self) -> Backbone | None:
        """The fixed network from pixels to tokens (B, T, W). One per process: copy it to train it.

        Raises:
            SpecError: it is not installed.
            BundleError: its weights are damaged or cannot be fetched.
        """
        if self.name == "none":
            return None
        if self.name == LITE:
            return efficientnet_lite0(self.side, self.cells)
        if self.name == HOG:
            return hog(self.side, self.cells)
        if self.name == NAMES:
            return named_classes(self.side)
        return _from_hub(self.name)

    def encoder(self, dim: int) -> nn.Module:
        """Project the backbone's tokens, or learn from pixels. -> (B, T, dim) at (y, x) in [0, 1]."""
        if self.name == "none":
            return SmallImageEncoder(self.side, self.cells, dim)
        backbone = None if self.name == LITE else self.backbone()
        width = WIDTH if backbone is None else backbone.width
        return TokenEncoder(width, dim, coordinates=0 if self.name in (HOG, NAMES) else 2)

    def summary(self, x: Masked) -> Tensor:
        """Mean of the backbone's tokens (B, W), or a thumbnail's pixels in [0, 1] (B, 192)."""
        if self.name != "none":
            return x.mean()
        return _thumbnail(x.values[:, 0].float() / 255, self.side).flatten(1)


def _thumbnail(pixels: Tensor, side: int) -> Tensor:
    """Mean of each cell of an 8 x 8 grid: (B, 3, side, side) -> (B, 3, 8, 8)."""
    if not tracing():
        return functional.adaptive_avg_pool2d(pixels, THUMBNAIL)
    cells = [slice(i * side // THUMBNAIL, -(-(i + 1) * side // THUMBNAIL)) for i in range(THUMBNAIL)]
    rows = torch.stack([pixels[:, :, cell].mean(2) for cell in cells], 2)  # ONNX has no cells of unequal size
    return torch.stack([rows[..., cell].mean(3) for cell in cells], 3)


@cache
def _from_hub(name: str) -> Backbone:
    """Load a hub model once per process."""
    return hub.image_backbone(name)
