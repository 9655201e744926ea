"""Make the data of the digits demo: real handwritten digits, and spoken digits, notes and numbers that are made.

A parcel desk. Each parcel has a photo of the district digit that someone wrote on it, a recording of a clerk who calls
out the dock digit, a short note, a weight and a length. The lane is decided by, in this order:

1. the note asks to hurry: ``courier``;
2. heavier than 20 kg or longer than 120 cm: ``freight``;
3. otherwise the written digit (0-4 north, 5-9 south) and the spoken digit (0-4 early, 5-9 late): ``north early``, ...

The digits are scikit-learn's ``load_digits`` (UCI, 1797 images of 8 x 8 pixels, by 43 people). The voices are made
with espeak-ng, with noise added; notes and numbers are made from a seed. Test parcels have other images and voices
than training parcels.
"""

from __future__ import annotations

import csv
import ctypes
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np
import soxr
from PIL import Image
from sklearn.datasets import load_digits

RATE = 16_000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-scotland", "en-029")
VOICES = {
    "train": ("m1", "m2", "m3", "m5", "m7", "f1", "f2", "f4", "Andy", "Annie", "steph", "edward", "linda", "paul"),
    "test": ("m4", "f3", "Alex", "Andrea", "michel"),
}
HURRY = (
    "Please hurry, {who} is already waiting for it.",
    "Urgent: {who} must have this today.",
    "As fast as you can, {who} needs it at once.",
    "This cannot wait, {who} has asked for it twice.",
)
CALM = (
    "No rush at all, {who} is away until {day}.",
    "Handle with care, {who} ordered glass again.",
    "Leave it with {who}, or behind the house on {day}.",
    "A present for {who}, do not open before {day}.",
    "Ring the bell twice, {who} hears badly.",
    "{who} will pick it up on {day} or later.",
)
WHO = ("the school", "my aunt", "Mr Okafor", "the bakery", "Dr Lindqvist", "our office", "the museum", "a neighbour")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
MISSING = 0.05
COLUMNS = ("parcel", "photo", "voice", "note", "weight_kg", "length_cm")

SYNCHRONOUS, UTF8, DO_NOT_EXIT = 2, 1, 0x8000  # espeak-ng's speak_lib.h
SPEED, PITCH, RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker:
    """espeak-ng in this process, from the installed package; it knows one voice at a time."""

    def __init__(self) -> None:
        self._heard: list[np.ndarray] = []
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self._listen = _CALLBACK(self._hear)  # kept: the library holds a bare pointer to it
        data = espeakng_loader.get_data_path()
        self.rate = self._lib.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DO_NOT_EXIT)
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng must find its data in {data}, but did not. Reinstall espeakng-loader.")
        self._lib.espeak_SetSynthCallback(self._listen)

    def _hear(self, samples: Any, n: int, _: Any) -> int:
        if samples and n > 0:
            self._heard.append(np.ctypeslib.as_array(samples, (n,)).copy())
        return 0

    def say(self, text: str, voice: str, *, speed: int, pitch: int, spread: int) -> np.ndarray:
        """Speak a text.

        Args:
            text: to say.
            voice: accent and variant, such as "en-us+f3".
            speed: words a minute.
            pitch: of the voice, 0 to 99.
            spread: of the pitch, 0 (monotone) to 99.

        Returns:
            (n,) float32 in -1..1 at 16 kHz.
        """
        if self._lib.espeak_SetVoiceByName(voice.encode()):
            raise RuntimeError(f"espeak-ng must have the voice {voice!r}, but has not. Reinstall espeakng-loader.")
        for parameter, value in ((SPEED, speed), (PITCH, pitch), (RANGE, spread)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._heard, content = [], text.encode() + b"\0"
        failed = self._lib.espeak_Synth(content, len(content), 0, 1, 0, UTF8, None, None)
        if failed or not self._heard:
            raise RuntimeError(f"espeak-ng must say {text!r}, got status {failed}. Reinstall espeakng-loader.")
        return soxr.resample(np.concatenate(self._heard).astype(np.float32) / 32768, self.rate, RATE)


def make(folder: Path, train: int, test: int, seed: int = 0) -> Path:
    """Write train.csv, test.csv and new.csv with their media, unless they are there for these very arguments.

    Args:
        folder: to write to.
        train: number of training parcels.
        test: number of test parcels.
        seed: of every choice.

    Returns:
        ``folder``.
    """
    stamp, recipe = folder / "made.txt", f"train={train} test={test} seed={seed} version=1\n"
    if stamp.is_file() and stamp.read_text() == recipe:
        return folder
    for kind in ("photos", "voices"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    digits, speaker = load_digits(), Speaker()
    order = rng.permutation(len(digits.target))
    sides = {"train": order[:train], "test": order[train : train + test]}
    for side, chosen in sides.items():
        rows = [
            _parcel(folder, f"{side}{i:04d}", digits.images[pick], int(digits.target[pick]), VOICES[side], speaker, rng)
            for i, pick in enumerate(chosen)
        ]
        _lose(rows, rng)
        if side == "train":
            _break(folder, rows)
        _write(folder / f"{side}.csv", rows, (*COLUMNS, "lane"))
        if side == "test":
            _write(folder / "new.csv", _with_gaps(rows), COLUMNS)
    stamp.write_text(recipe)
    return folder


def _parcel(  # noqa: PLR0913
    folder: Path, name: str, image: np.ndarray, written: int, voices: Sequence[str], speaker: Speaker,
    rng: np.random.Generator,
) -> dict[str, str]:  # fmt: skip
    """One row, with its photo and its recording on disk."""
    spoken, hurry = int(rng.integers(10)), bool(rng.random() < 0.2)
    weight, length = float(rng.lognormal(1.6, 0.8)), float(rng.lognormal(4.0, 0.45))
    template = rng.choice(HURRY if hurry else CALM)
    photo, voice = f"photos/{name}.png", f"voices/{name}.wav"
    grey = Image.fromarray(np.uint8(255 - image * (255 / 16)))  # 0..16 ink -> black on white
    grey.resize((64, 64), Image.Resampling.BICUBIC).save(folder / photo)
    _record(folder / voice, speaker, WORDS[spoken], voices, rng)
    if hurry:
        lane = "courier"
    elif weight > 20 or length > 120:
        lane = "freight"
    else:
        lane = f"{'north' if written < 5 else 'south'} {'early' if spoken < 5 else 'late'}"
    note = template.format(who=rng.choice(WHO), day=rng.choice(DAYS))
    return {
        "parcel": name, "photo": photo, "voice": voice, "note": note[0].upper() + note[1:],
        "weight_kg": f"{weight:.2f}", "length_cm": f"{length:.0f}", "lane": lane,
    }  # fmt: skip


def _record(file: Path, speaker: Speaker, word: str, voices: Sequence[str], rng: np.random.Generator) -> None:
    """A spoken word by a random voice, with a pause around it and white noise at 5 to 30 dB below it."""
    said = speaker.say(
        word, f"{rng.choice(ACCENTS)}+{rng.choice(voices)}",
        speed=int(rng.integers(120, 220)), pitch=int(rng.integers(25, 75)), spread=int(rng.integers(20, 80)),
    )  # fmt: skip
    power = float(np.mean(said**2))
    sound = np.pad(said, [int(seconds * RATE) for seconds in rng.uniform(0.1, 0.4, 2)])
    noise = rng.normal(0, (power / 10 ** (rng.uniform(5, 30) / 10)) ** 0.5, len(sound))
    sound = (sound + noise) * (0.5 / np.abs(sound + noise).max())
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((sound * 32767).astype("<i2").tobytes())


def _lose(rows: Sequence[dict[str, str]], rng: np.random.Generator) -> None:
    """Empty some cells of each input."""
    for row in rows:
        for columns in (("photo",), ("voice",), ("note",), ("weight_kg", "length_cm")):
            if rng.random() < MISSING:
                row.update(dict.fromkeys(columns, ""))


def _break(folder: Path, rows: Sequence[dict[str, str]]) -> None:
    """Damage a few files and cells, as happens: the report lists them, and the rows are used without them."""
    photos = [row for row in rows if row["photo"]]
    voices = [row for row in rows if row["voice"]]
    half = folder / photos[1]["photo"]
    half.write_bytes(half.read_bytes()[:200])
    (folder / photos[2]["photo"]).write_text("This is a text, not a picture.")
    photos[3]["photo"] = "photos/never_taken.png"
    (folder / voices[4]["voice"]).write_bytes(b"")
    (folder / voices[5]["voice"]).write_bytes(b"RIFF of something else")
    next(row for row in rows[6:] if row["weight_kg"])["weight_kg"] = "heavy!"


def _with_gaps(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Parcels to try the model on: the first complete ones, each with something taken away."""
    whole = [row for row in rows if all(row.values())]
    gaps: tuple[tuple[str, ...], ...] = (
        (), ("photo",), ("voice",), ("note",), ("weight_kg", "length_cm"), ("photo", "voice"), ("photo", "voice", "note"),
    )  # fmt: skip
    return [dict(row) | dict.fromkeys(gap, "") for row, gap in zip(whole, gaps, strict=False)]


def _write(file: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
