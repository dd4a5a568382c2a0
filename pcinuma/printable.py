# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one function between foreign text and a screen or log: nothing of it moves a cursor, forges a line or turns the reading order.

Names, titles, paths and libvirt's messages come from whoever may define a domain. What comes out holds no control character (C0, DEL,
C1), no format character (bidirectional overrides, zero widths), no line or paragraph separator and no half of a surrogate pair, each
replaced by its escape (``\\n``, ``\\x9b``, ``\\u202e``); everything else, letters of all scripts included, stays as it is. What is
printable is ``str.isprintable``'s to say (Python's own rule for ``repr``). Neither function can fail.
"""

from __future__ import annotations

import shlex


def printable(text: str) -> str:
    """``text`` on one line, with an escape for every character that cannot be seen or does something."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def printable_lines(text: str) -> str:
    """The same of each line: the line feeds and tabs of ``text`` (XML, a traceback) are its author's, and stay."""
    return "".join(character if character in "\n\t" or character.isprintable() else ascii(character)[1:-1] for character in text)


def command(verb: str, domain: str, *options: str) -> str:
    """A command of ours on a domain, as a person types it in a shell."""
    return printable(" ".join(["pcinuma", verb, shlex.quote(domain), *options]))
