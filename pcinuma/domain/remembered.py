"""What the attributes of small elements mean, kept for the next time: a host's domains spell the same few hundred again and again.

The keys come from whoever may define a domain, so long ones are not kept: what stays in memory is bounded, whatever was read.
"""

from __future__ import annotations

from typing import Callable, TypeVar

Attributes = tuple[tuple[str, str], ...]
_Meaning = TypeVar("_Meaning")
_ENTRIES = 2048
_LONGEST = 300


def remembered(meaning: Callable[[Attributes], _Meaning]) -> Callable[[Attributes], _Meaning]:
    """``meaning``, which depends on its argument alone, computed once for each of the attributes that are usual."""
    known: dict[Attributes, _Meaning] = {}

    def look_up(attributes: Attributes) -> _Meaning:
        found = known.get(attributes)
        if found is None:
            found = meaning(attributes)
            if sum([len(name) + len(value) for name, value in attributes]) <= _LONGEST:
                if len(known) >= _ENTRIES:
                    known.clear()
                known[attributes] = found
        return found

    look_up.known = known  # type: ignore[attr-defined]  # for the test of what is kept
    return look_up
