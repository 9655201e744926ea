"""Words one by one: splitting, variation, and the modality itself."""

from polymodal.modalities.words.augment import WordsAugmentation
from polymodal.modalities.words.part import Words

__all__ = ["Words", "WordsAugmentation"]
