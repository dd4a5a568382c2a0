# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon's log looks like where it does not go to the journal."""

from __future__ import annotations

import io
import os
import re
import tempfile
import unicodedata
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcinuma.log import configure, log


def lines(*, debug: bool = False) -> list[str]:
    """What is written of one event of each level, without the times."""
    written = io.StringIO()
    configure(written, debug=debug)
    try:
        log.debug("looked", domain="a")
        log.info("decided", domain="a b", reason=None, devices=2)
        try:
            raise ValueError("no number")
        except ValueError:
            log.exception("call failed", method="Place")
    finally:
        configure()
    return [re.sub(r"^\S+Z ", "", line) for line in written.getvalue().splitlines()]


def test_an_event_is_a_line_with_its_fields_and_an_exception_brings_its_traceback() -> None:
    said = lines()
    assert said[:2] == ["info    decided domain='a b' devices=2", "error   call failed method=Place"]
    assert said[2] == "  Traceback (most recent call last):"
    assert said[-1] == "  ValueError: no number"


def test_debug_is_written_only_when_asked_for() -> None:
    assert lines(debug=True) == ["debug   looked domain=a", *lines()]


# What others wrote.

ANYTHING = st.text(st.characters(), max_size=12)
VALUES = st.recursive(
    ANYTHING | st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANYTHING, inner, max_size=3) | st.tuples(inner),
    max_leaves=4,
)


class Terminal(io.StringIO):
    """Where structlog lays out for a person."""

    def isatty(self) -> bool:
        return True


def written_to(stream: TextIO, event: str, value: Any, error: str) -> str:
    """What is written of a warning and of an exception that are about foreign text."""
    configure(stream)
    try:
        log.warning(event, domain=value)
        try:
            raise ValueError(error)
        except ValueError:
            log.exception(event, domain=value)
    finally:
        configure()
    stream.seek(0)
    return stream.read()


def harmful(text: str) -> set[str]:
    """What is left in ``text`` that does something, its lines apart."""
    return {character for character in text if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - set("\n\t")


@given(ANYTHING, VALUES, ANYTHING)
def test_nothing_that_others_wrote_does_anything_in_the_log(event: str, value: Any, error: str) -> None:
    said = written_to(io.StringIO(), event, value, error)
    assert harmful(said) == set()
    assert [line.split()[1] for line in said.split("\n") if line[:1] not in ("", " ")] == ["warning", "error"], "no line is forged"


@given(ANYTHING, VALUES, ANYTHING)
def test_nor_on_a_terminal_where_the_only_escapes_are_colours(event: str, value: Any, error: str) -> None:
    said = written_to(Terminal(), event, value, error)
    assert harmful(re.sub(r"\x1b\[[0-9;]*m", "", said)) == set()


@given(ANYTHING, VALUES)
def test_nor_in_the_journal_where_each_line_begins_with_a_priority(event: str, value: Any) -> None:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stream, pytest.MonkeyPatch.context() as patch:
        status = os.fstat(stream.fileno())
        patch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        said = written_to(stream, event, value, "error")
    assert harmful(said) == set()
    lines = said.rstrip("\n").split("\n")
    assert [line[:3] for line in lines] == ["<4>", *["<3>"] * (len(lines) - 1)]
