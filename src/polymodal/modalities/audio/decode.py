"""Sound files to mono waveforms."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import soxr

from polymodal.errors import DataError

if TYPE_CHECKING:
    from av import AudioResampler
    from av.container import InputContainer

EXACT = {"flac", "mov,mp4,m4a,3gp,3g2,mj2"}  # containers whose header tells the length, which is not just estimated
SLACK = 0.25  # seconds by which edit lists and encoder delay may shorten a track
UNKNOWN_SIZE = 0x7FFF0000  # programs that write into a pipe put 0, or this or more, where the size belongs
UNTOLD = 3600.0  # seconds of a sound whose header does not tell its length: 32 MB of FLAC can hold a month of silence
REPAIR = "Repair or remove the file."
CONTAINERS = (
    "aac", "aax", "ac3", "adx", "aiff", "amr", "amrnb", "amrwb", "ape", "asf", "au", "avi", "caf", "dsf", "dts",
    "dtshd", "dv", "eac3", "flac", "flv", "gsm", "gxf", "iff", "ircam", "loas", "matroska", "mlp", "mov", "mp3",
    "mpc", "mpc8", "mpeg", "mpegts", "mxf", "nistsphere", "nut", "ogg", "oma", "qcp", "qoa", "rm", "rso", "shn",
    "sox", "swf", "tak", "truehd", "tta", "voc", "w64", "wav", "wsd", "wtv", "wv", "xwma",
)  # fmt: skip
"""What is opened, by FFmpeg's names: files that hold their samples themselves. The others must stay shut: a playlist
(concat, hls) or a session description (sdp) makes FFmpeg read the files and hosts that it names."""
SEALED = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": ""}


@dataclass(frozen=True, slots=True)
class Sound:
    """A decoded sound.

    Attributes:
        wave: (n,) float32 mono in -1..1 at the rate that was asked for, cut after the longest allowed time.
        seconds: length of the whole sound.
        rate: samples per second in the file.
        channels: in the file.
        cut: whether ``wave`` is shorter than the sound.
    """

    wave: np.ndarray
    seconds: float
    rate: int
    channels: int
    cut: bool


def decode(content: bytes, rate: int, longest: float) -> Sound:
    """Decode the first audio track of a file, mix its channels to one and resample.

    What follows ``longest`` seconds is not kept, and not decoded where the file tells its length.

    Raises:
        DataError: no sound, damaged, cut off, empty or with samples that are no numbers.
    """
    import av.error  # FFmpeg's libraries, which only a sound needs

    check_size(content)
    to_float = av.AudioResampler(format="fltp")
    try:
        with av.open(
            io.BytesIO(content), "r", metadata_errors="replace", container_options=dict(SEALED), io_open=_refuse
        ) as container:
            wave, seconds, native, channels = _track(container, to_float, longest)
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, av.error.ArgumentError):
            reason += " (a playlist, or another format that is not opened)"
        raise DataError(f"sound must be a file that FFmpeg decodes to its end, got: {reason}. {REPAIR}") from error
    if not np.isfinite(wave).all():
        raise DataError(f"samples must be finite numbers, got NaN or infinity. {REPAIR}")
    keep = round(longest * native)
    cut = seconds * native > keep + 0.5
    wave = wave[:keep]
    wave = wave if native == rate else soxr.resample(wave, native, rate)
    if not len(wave):
        raise DataError(f"sound must have at least one sample, got none. {REPAIR}")
    return Sound(np.ascontiguousarray(wave, dtype=np.float32), seconds, native, channels, cut)


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Open nothing that a file refers to."""
    raise DataError(f"sound must be in the file itself, got a reference to another one. {REPAIR}")


def _track(container: InputContainer, to_float: AudioResampler, longest: float) -> tuple[np.ndarray, float, int, int]:
    """Mono samples (n,) of at least ``longest`` seconds, if there are; seconds of all; rate; channels."""
    if not container.streams.audio:
        raise DataError(f"sound must be a file with an audio track, got {container.format.name} without one.")
    stream = container.streams.audio[0]
    promised = None if stream.duration is None else float(stream.duration * (stream.time_base or 0))
    parts: list[np.ndarray] = []
    count, native, channels = 0, 0, 0
    for frame in container.decode(stream):
        native, channels = _check_rate(frame.sample_rate), frame.layout.nb_channels
        if count < longest * native:
            parts.extend(piece.to_ndarray().mean(0, dtype=np.float32) for piece in to_float.resample(frame))
        elif promised is not None:
            return np.concatenate(parts), max(promised, count / native), native, channels
        elif count > max(longest, UNTOLD) * native:
            raise DataError(
                f"sound must last at most {max(longest, UNTOLD):g} s where its header does not tell its length, "
                "got more. Cut it, or save it again as a whole file."
            )
        count += frame.samples
    if not parts:
        raise DataError(f"sound must have at least one sample, got none. {REPAIR}")
    seconds = count / native
    if promised is not None and container.format.name in EXACT and seconds < promised - SLACK:
        raise DataError(f"sound must last {promised:.2f} s as its header says, got {seconds:.2f} s. {REPAIR}")
    return np.concatenate(parts), seconds, native, channels


def _check_rate(rate: int) -> int:
    """Refuse a rate that only a damaged header has."""
    if not 1000 <= rate <= 1_000_000:
        raise DataError(f"sample rate must be in 1000..1000000 Hz, got {rate}. {REPAIR}")
    return rate


def check_size(content: bytes) -> None:
    """Refuse a WAV file that holds fewer samples than its header says, which FFmpeg takes without a word.

    Raises:
        DataError: the file was cut off.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return
    place = 12
    while place + 8 <= len(content):
        name, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8
        if name == b"data":
            there = len(content) - place
            if there + 64 < size < UNKNOWN_SIZE:  # some programs count their header
                raise DataError(f"WAV file must hold {size} bytes of samples, got {there}: it was cut off. {REPAIR}")
            return
        place += size + size % 2
