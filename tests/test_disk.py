"""Files and folders are there whole or not at all."""

import os
import threading

import pytest

from polymodal.disk import swap, write_whole


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a.onnx", b"content")
    assert not list(tmp_path.iterdir())


def test_several_writers_leave_the_file_of_one(tmp_path):
    contents, file = [bytes([i]) * 200_000 for i in range(4)], tmp_path / "new" / "a.onnx"
    jobs = [threading.Thread(target=write_whole, args=(file, c)) for c in contents]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert file.read_bytes() in contents
    assert list(file.parent.iterdir()) == [file]


def folders(tmp_path):
    for name in ("new", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    return tmp_path / "new", tmp_path / "model"


def test_a_folder_takes_the_place_of_another(tmp_path):
    new, path = folders(tmp_path)
    swap(new, path)
    assert (path / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    new, path = folders(tmp_path)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: full() if a == new else replace(a, b))
    with pytest.raises(OSError, match="No space"):
        swap(new, path)
    assert (path / "a").read_text() == "model"
