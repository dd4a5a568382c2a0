"""What the daemon's log looks like where it does not go to the journal."""

from __future__ import annotations

import io
import re

from pcinuma.daemon.log import configure, log


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
    assert said[:3] == ["info    decided domain='a b' devices=2", "error   call failed method=Place", "Traceback (most recent call last):"]
    assert said[-1] == "ValueError: no number"


def test_debug_is_written_only_when_asked_for() -> None:
    assert lines(debug=True) == ["debug   looked domain=a", *lines()]
