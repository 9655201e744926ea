"""How much work a JPEG asks for, known before it is done."""

from __future__ import annotations

import re

MOST_SCANS = 100
"""Encoders write about ten; every further one costs a pass over all coefficients and few bytes."""

_START, _END = 0xDA, 0xD9  # of a scan, of the image
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def count_scans(content: bytes, most: int = MOST_SCANS) -> int:
    """Scans of a JPEG's first image, counted by its markers; at most ``most`` + 1.

    Segments are skipped by their length, so that a thumbnail in one of them does not count. A damaged file ends the
    count: what is behind the damage, a decoder does not read either.
    """
    place, scans = 2, 0
    while scans <= most:
        found = _MARKER.search(content, place)
        if found is None or content[found.start() + 1] == _END:
            break
        marker, place = content[found.start() + 1], found.end()
        scans += marker == _START
        if marker not in _ALONE:
            length = int.from_bytes(content[place : place + 2])
            if length < 2:
                break
            place += length
    return scans
