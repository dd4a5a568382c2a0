# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lists of numbers: what libvirt takes, as libvirt reads it, at the cost of the text and never of the numbers."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
from typing import Callable, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcinuma.domain.address import read_location
from pcinuma.domain.read import read_domain
from pcinuma.domain.remembered import Attributes, remembered
from pcinuma.domain.xml import Document
from pcinuma.errors import DomainError
from pcinuma.ranges import HIGHEST, Ranges, format_ranges, parse_ranges, parse_spans
from tests.waiting import CHECKOUT

NUMBERS = st.one_of(st.integers(0, 12), st.integers(0, HIGHEST))
ITEMS = st.lists(
    st.one_of(
        NUMBERS.map(str),
        st.tuples(NUMBERS, NUMBERS).map(lambda pair: f"{min(pair)}-{max(pair)}"),
        NUMBERS.map(lambda number: f"^{number}"),
    ),
    min_size=1,
    max_size=12,
)


def said(items: list[str]) -> set[int]:
    """What a list says, number by number."""
    numbers: set[int] = set()
    for item in items:
        first, _, last = item.lstrip("^").partition("-")
        for number in range(int(first), int(last or first) + 1):
            numbers.discard(number) if item[0] == "^" else numbers.add(number)
    return numbers


@settings(deadline=None)
@given(ITEMS, st.sampled_from([",", ", ", " ,"]))
def test_a_list_is_read_number_by_number(items: list[str], comma: str) -> None:
    ranges = parse_spans(comma.join(items))
    assert ranges is not None
    expected = said(items)
    assert list(ranges) == sorted(expected) and len(ranges) == len(expected) and bool(ranges) == bool(expected)
    assert ranges == Ranges.of(expected) and hash(ranges) == hash(Ranges.of(expected))
    assert parse_spans(format_ranges(ranges)) == ranges and format_ranges(expected) == format_ranges(ranges)
    assert all((number in ranges) == (number in expected) for number in {0, 1, HIGHEST, *expected, *(n + 1 for n in expected)})
    plain = [item for item in items if item[0] != "^"]
    assert not plain or parse_ranges(",".join(plain)) == frozenset(said(plain))


@settings(deadline=None)
@given(ITEMS, ITEMS)
def test_two_lists_overlap_where_a_number_is_in_both(one: list[str], other: list[str]) -> None:
    first, second = parse_spans(",".join(one)), parse_spans(",".join(other))
    assert first is not None and second is not None
    assert first.overlaps(second) == second.overlaps(first) == bool(said(one) & said(other))


@pytest.mark.parametrize(
    "text",
    [
        *("x", "1-", "-1", "-", "1--2", "3-1", "1,,2", ",1", "1,", "^1-2", "^", "^^1", "1 2", "+1", "0x1", "1_0", "\u0661", "\u00b2"),
        *(str(HIGHEST + 1), f"0-{HIGHEST + 1}", f"^{HIGHEST + 1}", "9" * 5000, f"0-{'9' * 5000}", "1,x"),
    ],
)
def test_what_is_no_list_is_none(text: str) -> None:
    assert parse_spans(text) is None and parse_ranges(text) is None


def test_the_kernel_takes_nothing_out() -> None:
    assert parse_ranges("0-3,^2") is None and parse_ranges(" \n") == frozenset()


MANY = 3000
"""Documents that libvirt takes and whose numbers, one by one, would be a thousand times their length."""
DOCUMENTS: dict[str, Callable[[], str]] = {
    "pins": lambda: "<cputune>" + "".join(f"<vcpupin vcpu='{n}' cpuset='0-{HIGHEST}'/>" for n in range(MANY)) + "</cputune>",
    "pins with holes": lambda: "<cputune>" + "".join(f"<vcpupin vcpu='{n}' cpuset='0-16000,^{n}'/>" for n in range(MANY)) + "</cputune>",
    "memnodes": lambda: "<numatune>" + "".join(f"<memnode cellid='0' nodeset='0-{1000 + n}'/>" for n in range(MANY)) + "</numatune>",
    "memory": lambda: f"<numatune><memory nodeset='0-{HIGHEST}'/></numatune>",
    "cpuset": lambda: f"<vcpu cpuset='0-{HIGHEST}'>1</vcpu>",
    "cells": lambda: "<cpu><numa>" + "".join(f"<cell id='{n}' cpus='0-{HIGHEST}'/>" for n in range(MANY)) + "</numa></cpu>",
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_memory_is_that_of_the_text(name: str) -> None:
    cells = "" if name == "cells" else f"<cpu><numa><cell id='0' cpus='0-{HIGHEST}'/><cell id='1'/></numa></cpu>"
    xml = f"<domain><name>a</name>{DOCUMENTS[name]()}{cells}</domain>".encode()
    document = Document(xml)
    gc.collect()
    tracemalloc.start()
    try:
        domain, _ = read_domain(document)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert domain.cells and peak < 16 * len(xml) + 500_000, (kept, peak, len(xml))


def test_long_values_are_not_remembered() -> None:
    @remembered
    def meaning(attributes: Attributes) -> int:
        return len(attributes)

    for number in range(5000):
        assert meaning((("type", "pci"), ("slot", str(number)))) == 2
        assert meaning((("type", "pci"), ("slot", f"{number:01000}"))) == 2
    known = meaning.__self__  # type: ignore[attr-defined]
    assert 0 < len(known) <= 2048 and sum(len(str(key)) for key in known) < 1_000_000


@pytest.mark.parametrize("length", [81, 1_000_000])
def test_a_sentence_about_a_long_value_is_short(length: int) -> None:
    element = Document(f"<domain slot='{length * 'x'}'/>".encode()).root
    with pytest.raises(DomainError) as raised:
        read_location(element, "it")
    assert len(str(raised.value)) < 200 and str(length) in str(raised.value)
    xml = f"<domain><cpu><numa><cell cpus='{length * '1'}'/></numa></cpu></domain>".encode()
    problem: Optional[str] = read_domain(Document(xml))[0].problem
    assert problem is not None and len(problem) < 200


def test_names_do_not_stay_in_memory() -> None:
    """A thread of lxml's keeps every name that it ever read; long documents are read where it ends."""
    program = """
import ctypes, gc
from pcinuma.domain.xml import Document
def resident():
    gc.collect(); ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4
def read(number):
    Document(("<domain>" + "".join(f"<n{number}_{i}/>" for i in range(20000)) + "</domain>").encode())
read(0)
before = resident()
for number in range(1, 25):
    read(number)
print(resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 8 * 1024, "KiB of names"  # some 29 MiB where they stay
