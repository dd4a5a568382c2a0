# SPDX-License-Identifier: LGPL-2.1-or-later
"""A line for the manager's log: each reads its hooks' standard error. Whether anybody does changes nothing for the guest."""

from __future__ import annotations

import os

from pcinuma.printable import printable


def say(sentence: str) -> None:
    """Write ``sentence`` to standard error, if there is one."""
    try:
        os.write(2, f"pcinuma: {printable(sentence)}\n".encode(errors="backslashreplace"))
    except OSError:
        pass
