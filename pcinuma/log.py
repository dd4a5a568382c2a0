# SPDX-License-Identifier: LGPL-2.1-or-later
"""structlog, set up once: priorities for the journal, colours on a terminal, plain lines with a time elsewhere.

One event per decision; what it is about is in the fields. Threads may log too. What foreigners wrote passes through
:mod:`pcinuma.printable` before it is laid out, whichever the layout, so that no name forges a line or moves a cursor. Only what
structlog 20.1 (Debian 11) has is used: its later filtering logger is two processors here.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Mapping, MutableMapping, TextIO

import structlog

from pcinuma.printable import printable, printable_lines

log: structlog.types.FilteringBoundLogger = structlog.get_logger("pcinumad")

_PRIORITIES: Mapping[str, int] = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""sd-daemon(3): the number in ``<N>`` at the start of a line."""


def configure(stream: TextIO = sys.stderr, *, debug: bool = False) -> None:
    """Log to ``stream`` from now on."""
    processors: list[Any] = [*([] if debug else [_no_debug]), _level, structlog.processors.format_exc_info, _printable]
    if is_journal(stream):
        processors.append(_journal_line)
    elif stream.isatty():
        processors += [structlog.processors.TimeStamper("%H:%M:%S", utc=False), structlog.dev.ConsoleRenderer()]
    else:
        processors += [structlog.processors.TimeStamper("iso"), _plain_line]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.BoundLogger,
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )


def is_journal(stream: TextIO) -> bool:
    """Whether ``stream`` goes to the journal, by ``JOURNAL_STREAM`` (systemd.exec(5))."""
    try:
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        status = os.fstat(stream.fileno())
        return (status.st_dev, status.st_ino) == (int(device), int(inode))
    except (ValueError, OSError):
        return False


def _no_debug(_logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if method == "debug":
        raise structlog.DropEvent
    return event


def _level(_logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the level; ``log.exception`` is an error with its traceback."""
    if method == "exception":
        event["exc_info"] = True
    event["level"] = "error" if method == "exception" else method
    return event


def _printable(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Everything that is said, however deep it lies; what is neither text nor a container says itself."""
    exception = event.pop("exception", None)
    said: MutableMapping[str, Any] = {name: _seen(value) for name, value in event.items()}
    if exception is not None:
        said["exception"] = printable_lines(f"  {exception}".replace("\n", "\n  "))  # no line of it looks like one of the log's
    return said


def _seen(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {_seen(name): _seen(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_seen(inner) for inner in value]
    return printable(str(value))


def _journal_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    priority = _PRIORITIES[event.pop("level")]
    lines = _words(event).split("\n")
    return "\n".join(f"<{priority}>{line}" for line in lines)


def _plain_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> str:
    return f"{event.pop('timestamp')} {event.pop('level'):<8}{_words(event)}"


def _words(event: MutableMapping[str, Any]) -> str:
    text = str(event.pop("event"))
    exception = event.pop("exception", None)
    fields = " ".join(f"{name}={_word(value)}" for name, value in event.items() if value is not None)
    text = f"{text} {fields}" if fields else text
    return f"{text}\n{exception}" if exception else text


def _word(value: object) -> str:
    text = str(value)
    return repr(text) if not text or any(character.isspace() or character in "\"'=" for character in text) else text
