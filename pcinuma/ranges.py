# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lists of small numbers as the kernel and libvirt write them: ``0-3,8`` and, in libvirt's XML, ``0-7,^2``.

Sources: ``lib/vsprintf.c`` (``%*pbl``) in Linux, ``virBitmapParse`` in libvirt's ``src/util/virbitmap.c``.

What a host says is a set of numbers. What a domain says stays :class:`Ranges`, as long as its text: a thousand times ``0-16383`` is some
50 KB of XML that libvirt takes, and would be a gigabyte of sets.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Optional

HIGHEST = 16383
"""libvirt takes no CPU or node above it (``VIR_DOMAIN_CPUMASK_LEN``), and no kernel has one; a larger number is nonsense."""

Span = tuple[int, int]


class Ranges:
    """A set of numbers, as its runs: ascending, not touching, each its first and its last number."""

    __slots__ = ("spans",)

    def __init__(self, spans: tuple[Span, ...] = ()) -> None:
        self.spans = spans

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Ranges:
        """The set of ``numbers``."""
        spans: list[Span] = []
        for number in sorted(numbers):
            if spans and spans[-1][1] >= number - 1:
                spans[-1] = (spans[-1][0], number)
            else:
                spans.append((number, number))
        return cls(tuple(spans))

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self.spans, (number, HIGHEST)) - 1
        return at >= 0 and number <= self.spans[at][1]

    def __iter__(self) -> Iterator[int]:
        for first, last in self.spans:
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return sum([last + 1 - first for first, last in self.spans])

    def __bool__(self) -> bool:
        return bool(self.spans)

    def __eq__(self, other: object) -> bool:
        return self.spans == other.spans if isinstance(other, Ranges) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.spans)

    def __repr__(self) -> str:
        return f"<Ranges {','.join(_spelled(span) for span in self.spans)}>"

    def overlaps(self, other: Ranges) -> bool:
        """Whether some number is in both."""
        few, many = sorted((self.spans, other.spans), key=len)
        for first, last in few:
            at = bisect_right(many, (last, HIGHEST)) - 1
            if at >= 0 and many[at][1] >= first:
                return True
        return False


def parse_ranges(text: str) -> Optional[frozenset[int]]:
    """The numbers that ``text`` lists, as the kernel writes them; the empty set for blank text; None for anything that is no such list."""
    ranges = None if "^" in text else parse_spans(text)
    return None if ranges is None else frozenset(ranges)


def parse_spans(text: str) -> Optional[Ranges]:
    """The same as libvirt reads it, where ``^N`` takes a number out of what stands before it."""
    text = text.strip()
    if not text:
        return Ranges()
    if "," not in text and text[0] != "^":
        span = _span(text)
        return None if span is None else Ranges((span,))
    bits = 0  # at most 2 KiB, whatever the text
    for item in text.split(","):
        item = item.strip()
        span = _span(item[1:] if item[:1] == "^" else item)
        if span is None:
            return None
        first, last = span
        if item[0] != "^":
            bits |= (1 << last + 1) - (1 << first)
        elif first != last:
            return None
        elif bits >> first & 1:
            bits ^= 1 << first
    return _of_bits(bits)


def _span(text: str) -> Optional[Span]:
    """``N`` or ``N-M``, with white space around the dash; None for anything else."""
    first_text, dash, last_text = text.partition("-")
    first = _number(first_text.strip())
    last = _number(last_text.strip()) if dash else first
    return None if first is None or last is None or first > last else (first, last)


def _number(text: str) -> Optional[int]:
    if len(text) > 9 or not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    return number if number <= HIGHEST else None


def _of_bits(bits: int) -> Ranges:
    spans: list[Span] = []
    digits = f"{bits:b}"[::-1]  # of the number N, digit N
    first = digits.find("1")
    while first >= 0:
        end = digits.find("0", first)
        if end < 0:
            end = len(digits)
        spans.append((first, end - 1))
        first = digits.find("1", end)
    return Ranges(tuple(spans))


def _spelled(span: Span) -> str:
    first, last = span
    return str(first) if first == last else f"{first}-{last}"


def format_ranges(numbers: Iterable[int]) -> str:
    """The shortest list of ``numbers`` in the kernel's form, ``0-3,8``."""
    ranges = numbers if isinstance(numbers, Ranges) else Ranges.of(numbers)
    return ",".join([_spelled(span) for span in ranges.spans])
