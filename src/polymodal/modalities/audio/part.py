"""The audio modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from polymodal.errors import SpecError, suggest
from polymodal.modalities.audio.augment import AudioAugmentation
from polymodal.modalities.audio.corrupt import corruptions
from polymodal.modalities.audio.decode import decode
from polymodal.modalities.audio.pieces import pieces
from polymodal.modalities.audio.sample import sample
from polymodal.nn.backbone import Backbone
from polymodal.nn.blocks import TokenEncoder
from polymodal.nn.signal import LogMel, SpectrogramEncoder, denoise, high_pass, level, normalise, trim
from polymodal.nn.speech import SAMPLE_RATE, WIDTH, speech_embedding
from polymodal.nn.weights import PACKAGED
from polymodal.part import Corruption, Modality, Pieces, Reading
from polymodal.reading import Field as FormField
from polymodal.types import Masked

SPEECH = "speech-embedding"


class Audio(Modality):
    """Speech, noises, music: WAV, FLAC, Ogg, MP3, M4A, AAC, AIFF, WMA, the sound of a video and other common formats.

    Every sound becomes one channel at one rate. It is cleaned in the order of the options below.

    Attributes:
        pretrained: in a spec ``backbone``: "speech-embedding", "hf:org/name" for a model from Hugging Face that takes
            waveforms at 16 kHz, "none" for a small network learned from scratch, "auto" for speech-embedding where its
            weights are installed, else none.
        sample_rate: in Hz that sounds are brought to. Other rates than 16000 need backbone "none".
        max_seconds: what follows is cut off, and reported.
        high_pass: in Hz; lower frequencies (hum, rumble, a constant offset) are removed.
        denoise: reduce steady noise by spectral gating.
        trim_silence: cut what is so many dB below the loudest 25 ms (-40 is usual) from both ends.
        loudness: level in dB of full scale that the parts with sound are brought to. Not needed for
            speech-embedding, whose accuracy does not depend on the level.
        augmentation: how training sounds are varied; not at all when not given.
    """

    model_config = ConfigDict(serialize_by_alias=True)
    media: ClassVar[bool] = True

    type: Literal["audio"] = "audio"
    pretrained: str = Field("auto", alias="backbone")
    sample_rate: int = Field(SAMPLE_RATE, ge=4000, le=192_000)
    max_seconds: float = Field(default=30.0, ge=0.1, le=3600)
    high_pass: float | None = Field(None, gt=0)
    denoise: bool = False
    trim_silence: float | None = Field(None, ge=-100, lt=0)
    loudness: float | None = Field(None, ge=-80, le=0)
    augmentation: AudioAugmentation | None = None

    @field_validator("pretrained")
    @classmethod
    def _known_backbone(cls, value: str) -> str:
        known = ("auto", SPEECH, "none", "hf:org/name")
        if value not in known[:3] and not (value.startswith("hf:") and len(value) > 3):
            raise ValueError(f"backbone must be one of {list(known)}, got {value!r}.{suggest(value, known)}")
        return value

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.sample_rate != SAMPLE_RATE and self.pretrained != "none":
            raise ValueError(
                f"sample_rate must be {SAMPLE_RATE} for backbone {self.pretrained!r}, got {self.sample_rate}. "
                "Leave it out, or set backbone to 'none'."
            )
        if self.high_pass is not None and self.high_pass >= self.sample_rate / 2:
            raise ValueError(f"high_pass must be below {self.sample_rate / 2:g} Hz, got {self.high_pass:g}. Lower it.")
        return self

    @property
    def name(self) -> str:
        """The backbone that is used: "auto" resolved by what is installed."""
        if self.pretrained != "auto":
            return self.pretrained
        installed = all(PACKAGED[file].locate() is not None for file in ("speech-mel", SPEECH))
        return SPEECH if installed else "none"

    def fields(self, name: str) -> tuple[FormField, ...]:
        """A sound file; the example is a short WAV."""
        return (FormField(self.columns(name)[0], "audio", sample()),)

    def read(self, content: bytes) -> Reading:
        """Decode a sound file, mix it to one channel, resample and clean it.

        Returns:
            (n,) float32 in -1..1 at ``sample_rate``; facts of the file before it was cleaned: seconds, sample_rate
            in Hz, channels, rms_db in dB of full scale (-120 for silence).

        Raises:
            DataError: no sound, damaged, cut off or empty.
        """
        sound = decode(content, self.sample_rate, self.max_seconds)
        wave = torch.from_numpy(sound.wave)
        facts = {"seconds": sound.seconds, "sample_rate": float(sound.rate), "channels": float(sound.channels)}
        facts["rms_db"] = level(wave)
        clean = self._clean(wave)
        repairs = (f"cut after {self.max_seconds:g} s",) if sound.cut else ()
        repairs += ("silence trimmed",) if len(clean) < len(wave) else ()
        return Reading(clean, repairs, facts)

    def _clean(self, wave: Tensor) -> Tensor:
        """Apply the options to a waveform (n,)."""
        if self.high_pass is not None:
            wave = high_pass(wave, self.high_pass, self.sample_rate)
        if self.denoise:
            wave = denoise(wave, self.sample_rate)
        if self.trim_silence is not None:
            wave = trim(wave, self.trim_silence, self.sample_rate)
        return wave if self.loudness is None else normalise(wave, self.loudness, self.sample_rate)

    def fit(self, values: Iterable[Any | None]) -> Self:
        """Name the backbone. Reads no value."""
        return self.model_copy(update={"pretrained": self.name})

    @property
    def augments(self) -> bool:
        """Whether training sounds are varied."""
        return self.augmentation is not None

    def augment(self, value: Tensor, rng: np.random.Generator) -> Tensor:
        """A varied copy of a waveform (n,), of the same length."""
        return value if self.augmentation is None else self.augmentation.apply(value, rng, self.sample_rate)

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        """Noise, dropouts, reverberation and a low-pass."""
        return corruptions(self.sample_rate)

    def pieces(self, value: Tensor) -> Pieces | None:
        """Stretches of a quarter of a second, or longer ones."""
        return pieces(value, self.sample_rate)

    def collate(self, values: Sequence[Tensor | None]) -> Masked:
        """Waveforms -> (B, N) float32, N samples of the longest."""
        return Masked.pad(values, torch.zeros(()))

    def backbone(self) -> Backbone | None:
        """The pretrained network from waveforms to tokens (B, T, W). One per process: copy it to train it.

        Raises:
            SpecError: it is not installed.
            BundleError: its weights are damaged or cannot be fetched.
        """
        if self.name == "none":
            return None
        if self.name == SPEECH:
            return speech_embedding()
        try:
            from polymodal.nn import hub
        except ImportError as error:
            raise SpecError(
                f"backbone {self.name!r} must have the extra 'hub', got {error}. Run: pip install 'polymodal[hub]'"
            ) from error
        return hub.audio_backbone(self.name)

    def encoder(self, dim: int) -> nn.Module:
        """Project the backbone's tokens, or learn from the log-mel spectrogram. -> (B, T, dim) at seconds."""
        if self.name == "none":
            return SpectrogramEncoder(self.sample_rate, dim)
        backbone = None if self.name == SPEECH else self.backbone()
        return TokenEncoder(WIDTH if backbone is None else backbone.width, dim, coordinates=1)

    def summary(self, x: Masked) -> Tensor:
        """Mean and standard deviation over time: of the backbone's tokens (B, 2 W), or of 64 log-mel bands (B, 128)."""
        if self.name == "none":
            x = _log_mel(self.sample_rate, x.values.device)(x)
        mean = x.mean()
        deviation = Masked((x.values - mean.unsqueeze(1)).square(), x.mask).mean().sqrt()
        return torch.cat([mean, deviation], 1)


@cache
def _log_mel(rate: int, device: torch.device) -> LogMel:
    """One per process, rate and device."""
    with torch.inference_mode(False):
        return LogMel(rate).to(device)
