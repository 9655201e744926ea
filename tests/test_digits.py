"""The demo runs from data to predictions, and its data is what it says."""

import csv
import filecmp
import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

for package in ("sklearn", "espeakng_loader"):
    pytest.importorskip(package, reason="the demo needs the extra 'demo'")

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "digits.py"

sys.path.insert(0, str(RECIPE.parent))
import digits_data  # noqa: E402


def rows(file):
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return digits_data.make(tmp_path_factory.mktemp("data"), 60, 20, seed=3)


@pytest.mark.parametrize(
    ("parcel", "expected"),
    [
        ({}, "north early"),
        ({"written": 5}, "south early"),
        ({"spoken": 5}, "north late"),
        ({"weight": 21}, "freight"),
        ({"length": 121}, "freight"),
        ({"weight": 21, "hurry": True}, "courier"),
    ],
)
def test_each_input_changes_the_lane(parcel, expected):
    assert (
        digits_data.lane(**{"written": 4, "spoken": 4, "hurry": False, "weight": 20, "length": 120} | parcel)
        == expected
    )


def test_data_has_labels_gaps_and_damage_in_training(data):
    train = rows(data / "train.csv")
    assert len(train) == 60
    assert all(row["lane"] for row in train)
    assert any(not row["voice"] for row in train)
    assert sum(row["weight_kg"] == "heavy!" for row in train) == 1
    photos = [data / row["photo"] for row in train if row["photo"]]
    assert sum(not photo.exists() for photo in photos) == 1


def test_test_parcels_are_whole_or_empty_and_their_media_decode(data):
    for row in rows(data / "test.csv"):
        if row["photo"]:
            with Image.open(data / row["photo"]) as image:
                assert np.asarray(image).shape == (96, 96)
        if row["voice"]:
            with wave.open(str(data / row["voice"])) as sound:
                assert sound.getframerate() == 16_000
                heard = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
            assert 0.3 < len(heard) / 16_000 < 2
            assert np.abs(heard.astype(int)).max() > 10_000


def test_same_seed_same_data(data, tmp_path):
    script = f"import sys; sys.path.insert(0, {str(RECIPE.parent)!r}); import digits_data; from pathlib import Path; "
    subprocess.run([sys.executable, "-c", script + f"digits_data.make(Path({str(tmp_path)!r}), 60, 20, 3)"], check=True)
    files = [file.relative_to(data) for file in data.rglob("*") if file.is_file()]
    assert len(files) > 150
    assert filecmp.cmpfiles(data, tmp_path, files, shallow=False)[0] == files


def test_data_is_made_once_and_again_for_other_arguments(tmp_path):
    digits_data.make(tmp_path, 40, 20)
    made = (tmp_path / "train.csv").stat().st_mtime_ns
    digits_data.make(tmp_path, 40, 20)
    assert (tmp_path / "train.csv").stat().st_mtime_ns == made
    digits_data.make(tmp_path, 41, 20)
    assert len(rows(tmp_path / "train.csv")) == 41


def test_speaker_refuses_a_voice_it_has_not():
    with pytest.raises(RuntimeError, match="must have the voice"):
        digits_data.Speaker(0).say("one", "no-such-voice", speed=160, pitch=50, spread=50)


def test_demo_runs_to_its_end(tmp_path):
    done = subprocess.run(
        [sys.executable, str(RECIPE), "--tiny", "--folder", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "weights.safetensors").is_file()
    assert "<html" in (tmp_path / "model" / "report.html").read_text(encoding="utf-8")
    accuracy = float(re.search(r"all inputs +([\d.]+)", done.stdout)[1])
    alone = [float(score) for score in re.findall(r"  only \w+ +([\d.]+)", done.stdout)]
    assert len(alone) == 4
    assert accuracy > max(alone)
    assert done.stdout.count("% sure") == 8
    assert "photo: 3 broken" in done.stdout
    assert "polymodal predict" in done.stdout
