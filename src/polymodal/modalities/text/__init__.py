"""Text: cleaning, words, augmentation, and the modality itself."""

from polymodal.modalities.text.augment import TextAugmentation
from polymodal.modalities.text.part import Text

__all__ = ["Text", "TextAugmentation"]
