# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a check found: a value, for the text of ``pcinuma check`` and its JSON alike."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Optional


class Level(enum.Enum):
    """How bad it is."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do about it."""

    level: Level
    what: str
    message: str
    hint: Optional[str] = None

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"level": self.level.value, "check": self.what, "message": self.message, "hint": self.hint}


def passed(what: str, message: str) -> Finding:
    """A line that asks for nothing."""
    return Finding(Level.PASS, what, message)


def warn(what: str, message: str, hint: Optional[str] = None) -> Finding:
    """A line that a person should read."""
    return Finding(Level.WARN, what, message, hint)


def fail(what: str, message: str, hint: Optional[str] = None) -> Finding:
    """A line that explains why guests are not placed."""
    return Finding(Level.FAIL, what, message, hint)
