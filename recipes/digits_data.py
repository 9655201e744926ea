"""Make the data of the digits demo: real handwritten digits, and spoken digits, notes and numbers that are made.

A parcel desk. Each parcel has a photo of the district digit that someone wrote on it, a recording of a clerk who calls
out the dock digit, a short note, a weight and a length. The lane is decided by, in this order:

1. the note asks to hurry: ``courier``;
2. heavier than 20 kg or longer than 120 cm: ``freight``;
3. otherwise the written digit (0-4 north, 5-9 south) and the spoken digit (0-4 early, 5-9 late): ``north early``, ...

Most parcels are small; heavy and long ones are well beyond these limits. The digits are scikit-learn's
``load_digits`` (UCI, 1797 images of 8 x 8 pixels, by 43 people). The voices are made with espeak-ng, with noise added;
notes and numbers are made from a seed. Test parcels have other images and voices than training parcels.
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
    "Please hurry, {who} is waiting for it since {day}.",
    "Urgent: {who} must have this before {day}.",
    "As fast as you can, {who} needs it on {day} at the latest.",
    "This cannot wait, {who} has asked for it twice since {day}.",
)
CALM = (
    "No rush at all, {who} is away until {day}.",
    "Handle with care, {who} ordered glass again on {day}.",
    "Leave it with {who}, or behind the house on {day}.",
    "A present for {who}, do not open before {day}.",
    "Ring the bell twice, {who} hears badly and sleeps late on {day}.",
    "{who} will pick it up on {day} or later.",
)
FIRST = (
    "Ada", "Bruno", "Chen", "Dora", "Emeka", "Farah", "Goran", "Hana", "Inge", "Jonas", "Kofi", "Lena",
    "Mateo", "Nadia", "Omar", "Priya", "Quinn", "Rosa", "Sven", "Tariq", "Uma", "Vera", "Wei", "Yuki",
)  # fmt: skip
LAST = (
    "Abara", "Berg", "Castro", "Dubois", "Eriksen", "Fischer", "Gomez", "Haddad", "Ito", "Jansen", "Kaur", "Lind",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
MISSING = 0.04
COLUMNS = ("parcel", "photo", "voice", "note", "weight_kg", "length_cm")

SYNCHRONOUS, UTF8, DO_NOT_EXIT = 2, 1, 0x8000  # espeak-ng's speak_lib.h
SPEED, PITCH, RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Speaker:
    """espeak-ng in this process, from the installed package; it knows one voice at a time."""

    def __init__(self, seed: int) -> None:
        self._heard: list[np.ndarray] = []
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self._listen = _CALLBACK(self._hear)  # kept: the library holds a bare pointer to it
        data = espeakng_loader.get_data_path()
        self.rate = self._lib.espeak_Initialize(SYNCHRONOUS, 0, data.encode(), DO_NOT_EXIT)
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng must find its data in {data}, but did not. Reinstall espeakng-loader.")
        self._lib.espeak_SetSynthCallback(self._listen)
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(seed))  # of the breath in its voices; else the clock's

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
        test: number of test parcels; 1700 with the training ones at most.
        seed: of every choice.

    Returns:
        ``folder``.
    """
    stamp, recipe = folder / "made.txt", f"train={train} test={test} seed={seed} version=2\n"
    if stamp.is_file() and stamp.read_text() == recipe:
        return folder
    for kind in ("photos", "voices"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    desk = _Desk(folder, seed)
    rows = desk.parcels("train", train)
    _lose(rows, desk.rng)
    _break(folder, rows)
    _write(folder / "train.csv", rows, (*COLUMNS, "lane"))
    rows = desk.parcels("test", test)
    _write(folder / "new.csv", _with_gaps(rows), COLUMNS)
    _lose(rows, desk.rng)
    _write(folder / "test.csv", rows, (*COLUMNS, "lane"))
    stamp.write_text(recipe)
    return folder


class _Desk:
    """Where parcels come in: each image and each pair of addressee and day is used once."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.speaker = folder, np.random.default_rng(seed), Speaker(seed)
        digits: Any = load_digits()
        self.images, self.targets = digits.images, digits.target
        self.order = iter(self.rng.permutation(len(self.targets)))
        self.pairs = iter(self.rng.permutation(len(FIRST) * len(LAST) * len(DAYS)))

    def parcels(self, side: str, n: int) -> list[dict[str, str]]:
        """Rows of the table, with their photos and recordings on disk."""
        return [self._parcel(f"{side}{i:04d}", side, int(pick)) for i, pick in zip(range(n), self.order, strict=False)]

    def _parcel(self, name: str, side: str, pick: int) -> dict[str, str]:
        rng, written = self.rng, int(self.targets[pick])
        spoken, hurry = int(rng.integers(10)), bool(rng.random() < 0.2)
        weight, length = min(rng.lognormal(1.2, 0.7), 18.0), min(rng.lognormal(3.6, 0.4), 110.0)
        weight = rng.uniform(22, 60) if rng.random() < 0.18 else weight
        length = rng.uniform(130, 220) if rng.random() < 0.08 else length
        photo, voice = f"photos/{name}.png", f"voices/{name}.wav"
        _draw(self.folder / photo, self.images[pick])
        _record(self.folder / voice, self.speaker, WORDS[spoken], VOICES[side], rng)
        return {
            "parcel": name, "photo": photo, "voice": voice, "note": self._note(hurry),
            "weight_kg": f"{weight:.2f}", "length_cm": f"{length:.1f}",
            "lane": lane(written, spoken, hurry=hurry, weight=weight, length=length),
        }  # fmt: skip

    def _note(self, hurry: bool) -> str:
        who, day = divmod(int(next(self.pairs)), len(DAYS))
        first, last = divmod(who, len(LAST))
        template = str(self.rng.choice(HURRY if hurry else CALM))
        return template.format(who=f"{FIRST[first]} {LAST[last]}", day=DAYS[day])


def lane(written: int, spoken: int, *, hurry: bool, weight: float, length: float) -> str:
    """The rule that the model has to find out."""
    if hurry:
        return "courier"
    if weight > 20 or length > 120:
        return "freight"
    return f"{'north' if written < 5 else 'south'} {'early' if spoken < 5 else 'late'}"


def _draw(file: Path, image: np.ndarray) -> None:
    """A digit (8, 8) with 0 to 16 of ink, black on a white label of 96 x 96 pixels."""
    grey = Image.fromarray(np.uint8(255 - image * (255 / 16))).resize((64, 64), Image.Resampling.BICUBIC)
    label = Image.new("L", (96, 96), 255)
    label.paste(grey, (16, 16))
    label.save(file)


def _record(file: Path, speaker: Speaker, word: str, voices: Sequence[str], rng: np.random.Generator) -> None:
    """A spoken word by a random voice, with a pause around it and white noise 10 to 30 dB below it."""
    said = speaker.say(
        word, f"{rng.choice(ACCENTS)}+{rng.choice(voices)}",
        speed=int(rng.integers(120, 220)), pitch=int(rng.integers(25, 75)), spread=int(rng.integers(20, 80)),
    )  # fmt: skip
    power = float(np.mean(said**2))
    sound = np.pad(said, [int(seconds * RATE) for seconds in rng.uniform(0.1, 0.4, 2)])
    noise = rng.normal(0, (power / 10 ** (rng.uniform(10, 30) / 10)) ** 0.5, len(sound))
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
    """Parcels to try the model on: one with different gaps, one with its note alone, one with its numbers alone."""
    photo, voice, note, numbers = ("photo",), ("voice",), ("note",), ("weight_kg", "length_cm")
    first = {row["lane"]: row for row in reversed(rows)}
    sorted_by_digits = next(row for row in rows if row["lane"] not in ("courier", "freight"))
    gaps = [(sorted_by_digits, gap) for gap in ((), photo, voice, note, numbers, photo + voice)]
    gaps += [(first["courier"], photo + voice + numbers), (first["freight"], photo + voice + note)]
    return [dict(row) | dict.fromkeys(gap, "") for row, gap in gaps]


def _write(file: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
