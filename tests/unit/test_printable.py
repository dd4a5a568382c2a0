# SPDX-License-Identifier: LGPL-2.1-or-later
"""Foreign text on a screen or in a log: no character of any category does anything there."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcinuma.printable import printable, printable_lines

HARMFUL = ("Cc", "Cf", "Cs", "Zl", "Zp")
NAMED = [*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF, 0xE0001]
ANYTHING = st.text(st.characters(), max_size=40)  # surrogates too: what os.fsdecode makes of bytes that are no UTF-8


@pytest.mark.parametrize("number", NAMED, ids=hex)
def test_what_does_something_on_a_terminal_is_shown_by_its_escape(number: int) -> None:
    shown = printable(f"a{chr(number)}b")
    assert shown == f"a{ascii(chr(number))[1:-1]}b"
    assert shown.isascii()


def test_no_character_of_a_harmful_category_gets_through() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        harmful = unicodedata.category(character) in HARMFUL
        assert not (harmful and character in printable(character)), hex(number)
        assert not (harmful and character not in "\n\t" and character in printable_lines(character)), hex(number)


@pytest.mark.parametrize("text", ["", "vm", "a b", "back\\slash", "'\"", "grüße", "漢字", "имя", "עברית", "🖥"])
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert printable(text) == printable_lines(text) == text


@given(ANYTHING)
def test_the_result_is_one_line_that_every_log_takes_and_that_is_not_changed_again(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")
    assert printable(shown) == shown


@given(ANYTHING)
def test_lines_are_kept_and_no_more_lines_come(text: str) -> None:
    shown = printable_lines(text)
    assert shown.split("\n") == [printable_lines(line) for line in text.split("\n")]
    assert len(shown.splitlines()) <= text.count("\n") + 1
    assert printable_lines(shown) == shown
