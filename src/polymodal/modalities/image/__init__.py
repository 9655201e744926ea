"""Images: photographs, drawings and scans, decoded, unified and turned into tokens on a grid."""

from polymodal.modalities.image.augment import ImageAugmentation
from polymodal.modalities.image.part import Image

__all__ = ["Image", "ImageAugmentation"]
