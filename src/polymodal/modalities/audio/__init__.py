"""Sound: speech, noises and music, decoded, unified and turned into tokens in time."""

from polymodal.modalities.audio.augment import AudioAugmentation
from polymodal.modalities.audio.part import Audio

__all__ = ["Audio", "AudioAugmentation"]
