# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the attributes of small elements mean, kept for the next time: a host's domains spell the same few hundred again and again.

The keys come from whoever may define a domain, so long ones are not kept: what stays in memory is bounded, whatever was read.
"""

from __future__ import annotations

from typing import Callable, TypeVar

Attributes = tuple[tuple[str, str], ...]
_Meaning = TypeVar("_Meaning")
_ENTRIES = 2048
_LONGEST = 300


class _Known(dict[Attributes, _Meaning]):
    """What was asked for before; what is not there is looked up by ``dict`` itself, so that a hit costs no call of ours."""

    def __init__(self, meaning: Callable[[Attributes], _Meaning]) -> None:
        super().__init__()
        self._meaning = meaning

    def __missing__(self, attributes: Attributes) -> _Meaning:
        found = self._meaning(attributes)
        if sum([len(name) + len(value) for name, value in attributes]) <= _LONGEST:
            if len(self) >= _ENTRIES:
                self.clear()
            self[attributes] = found
        return found


def remembered(meaning: Callable[[Attributes], _Meaning]) -> Callable[[Attributes], _Meaning]:
    """``meaning``, which depends on its argument alone, computed once for each of the attributes that are usual."""
    return _Known(meaning).__getitem__
