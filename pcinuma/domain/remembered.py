# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the attributes of small elements mean, kept for the next time: a host's domains spell the same few hundred again and again.

The keys come from whoever may define a domain, so long ones are not kept: what stays in memory is bounded, whatever was read.
"""

from __future__ import annotations

from typing import Callable, Hashable, TypeVar

Attributes = tuple[tuple[str, str], ...]
_Spelt = TypeVar("_Spelt", bound=Hashable)
_Meaning = TypeVar("_Meaning")
_ENTRIES = 2048
_LONGEST = 300


class Remembered(dict[_Spelt, _Meaning]):
    """What was asked for before; what is not there is looked up by ``dict`` itself, so that a hit costs no call of ours."""

    def __init__(self, meaning: Callable[[_Spelt], _Meaning]) -> None:
        super().__init__()
        self._meaning = meaning

    def __missing__(self, spelt: _Spelt) -> _Meaning:
        found = self._meaning(spelt)
        if _length(spelt) <= _LONGEST:
            if len(self) >= _ENTRIES:
                self.clear()
            self[spelt] = found
        return found


def _length(spelt: object) -> int:
    """How many characters there are in a text, or in all texts of a tuple."""
    if isinstance(spelt, tuple):
        return sum(map(_length, spelt))
    return len(spelt) if isinstance(spelt, str) else 0


def remembered(meaning: Callable[[_Spelt], _Meaning]) -> Callable[[_Spelt], _Meaning]:
    """``meaning``, which depends on its argument alone (attributes, or a tuple with some), computed once for each that is usual."""
    return Remembered(meaning).__getitem__
