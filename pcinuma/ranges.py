"""Lists of small numbers as the kernel and libvirt write them: ``0-3,8`` and, in libvirt's XML, ``0-7,^2``.

Sources: ``lib/vsprintf.c`` (``%*pbl``) in Linux, ``virBitmapParse`` in libvirt's ``src/util/virbitmap.c``.
"""

from __future__ import annotations

import re
from typing import Optional

HIGHEST = 65535
"""No host has a CPU or node above this; a larger number is nonsense, and must not cost memory."""

_ITEM = re.compile(r"\s*(\^?)([0-9]{1,9})(?:-([0-9]{1,9}))?\s*\Z")


def parse_ranges(text: str, *, exclusions: bool = False) -> Optional[frozenset[int]]:
    """The numbers that ``text`` lists; the empty set for blank text; None for anything that is no such list.

    ``exclusions`` admits libvirt's ``^N``, which takes a number out of what stands before it.
    """
    text = text.strip()
    if not text:
        return frozenset()
    first_text, dash, last_text = text.partition("-")
    if text.isascii() and len(text) < 12 and first_text.isdecimal() and (last_text.isdecimal() or not dash):  # nearly always
        first = int(first_text)
        last = int(last_text) if dash else first
        return frozenset(range(first, last + 1)) if first <= last <= HIGHEST else None
    numbers: set[int] = set()
    for item in text.split(","):
        match = _ITEM.match(item)
        if match is None:
            return None
        caret, first, last = match.group(1), int(match.group(2)), int(match.group(3) or match.group(2))
        if last < first or last > HIGHEST or (caret and not exclusions):
            return None
        if caret:
            numbers.difference_update(range(first, last + 1))
        else:
            numbers.update(range(first, last + 1))
    return frozenset(numbers)


def format_ranges(numbers: frozenset[int]) -> str:
    """The shortest list of ``numbers`` in the kernel's form, ``0-3,8``."""
    parts: list[str] = []
    ordered = sorted(numbers)
    start = 0
    for position, number in enumerate(ordered):
        if position + 1 == len(ordered) or ordered[position + 1] != number + 1:
            first = ordered[start]
            parts.append(str(first) if first == number else f"{first}-{number}")
            start = position + 1
    return ",".join(parts)
