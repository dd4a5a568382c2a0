# SPDX-License-Identifier: LGPL-2.1-or-later
"""The tree of errors that pcinuma raises on purpose.

Every error says what is wrong, with which device or file (``subject``), and what to do next (``hint``); its text is the one
line that a person sees. :data:`EXIT_NEGATIVE` and :data:`EXIT_UNUSABLE` are the command's exit codes for the two kinds.
"""

from __future__ import annotations

from typing import ClassVar, Optional

EXIT_DONE = 0
EXIT_NEGATIVE = 1
EXIT_UNUSABLE = 2


class PcinumaError(Exception):
    """Something that pcinuma expects to go wrong now and then.

    ``what`` is a clause without a full stop; ``subject`` the device, domain or file it is about; ``hint`` what the reader can do.
    """

    exit_code: ClassVar[int] = EXIT_NEGATIVE

    def __init__(self, what: str, *, subject: Optional[str] = None, hint: Optional[str] = None) -> None:
        self.what = what
        self.subject = subject
        self.hint = hint
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """The error as one line: ``subject: what; hint``."""
        text = f"{self.subject}: {self.what}" if self.subject else self.what
        return f"{text}; {self.hint}" if self.hint else text


class UnusableInput(PcinumaError):
    """Wrong usage, or input that is no domain XML: nothing can be answered (exit code 2)."""

    exit_code = EXIT_UNUSABLE


class HostError(PcinumaError):
    """A file of the host tree that is unreadable or holds something that it should not."""


class DeviceAbsent(HostError):
    """The host has no such device at the moment (a VF before its PF's driver made it, an inactive mdev)."""


class DomainError(PcinumaError):
    """A well-formed domain with a value in it that means nothing."""


class ConfigError(UnusableInput):
    """A configuration file that cannot be used; the message names the file."""


class DaemonError(PcinumaError):
    """The daemon did not answer, or answered with an error."""


class LibvirtError(PcinumaError):
    """libvirt refused a call, or cannot be reached."""
