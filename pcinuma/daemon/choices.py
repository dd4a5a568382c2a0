# SPDX-License-Identifier: LGPL-2.1-or-later
"""What people decided about domains, and what must never be lost for it: one small file a domain, named by its UUID.

::

    existing/UUID   there before pcinuma's first start: left alone until enabled
    enabled/UUID    a person enabled it
    disabled/UUID   a person disabled it

The *name* is the record. What is in such a file (what was chosen, when, what the domain was called) is for people and never read back, so
that no content can be bad, and no record takes another one along. A choice is on the disk when :func:`choose` returns; a full disk is an
error. Where two folders name a domain, ``disabled`` counts.

A folder that is gone, is none, or has lost the ``README`` that it was made with, has lost what was in it. Without ``enabled`` nothing
happens that nobody asked for. Without ``existing`` it is as at the first start. Without ``disabled``, any domain may be one that a person
disabled: :attr:`Choices.unsure` is set, nothing is touched that is not known to be enabled, and once libvirt's domains are known,
:func:`establish` disables those. A loss leaves a file that says so (:data:`LOST`), and is complained of until a person takes that file
away.

Rejected: one file for all of it, with a copy of the last good one beside it. What is bad about one is most often bad about both.
The command uses this as well, where no daemon runs (the daemon's lock tells). Standard library only.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Optional

EXISTING, ENABLED, DISABLED = "existing", "enabled", "disabled"
LOST = "choices-lost"
_README = "README"
_MEANING = {
    EXISTING: "The domains, by UUID, that were there before pcinuma's first start: they are left alone until enabled.",
    ENABLED: "The domains, by UUID, that somebody enabled (pcinuma enable NAME).",
    DISABLED: "The domains, by UUID, that somebody disabled (pcinuma disable NAME). pcinuma never touches them.",
}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


@dataclass
class Choices:
    """Domains are named by UUID. ``existing`` is None until libvirt's domains were listed for the first time.

    ``unsure``: whom people disabled is not known. ``lost``: what was lost, in a sentence that says what to do.
    """

    existing: Optional[frozenset[str]] = None
    enabled: set[str] = field(default_factory=set)
    disabled: set[str] = field(default_factory=set)
    unsure: bool = False
    lost: Optional[str] = None

    def choose(self, uuid: str, *, enabled: bool) -> None:
        """Take a person's choice into account."""
        into, out_of = (self.enabled, self.disabled) if enabled else (self.disabled, self.enabled)
        into.add(uuid)
        out_of.discard(uuid)


def begun(folder: Path) -> bool:
    """Whether there ever were choices in the state folder ``folder``."""
    return any(os.path.lexists(folder / kind) for kind in (EXISTING, ENABLED, DISABLED))


def read(folder: Path) -> Choices:
    """The choices in the state folder ``folder``; changes nothing."""
    existing, enabled, disabled = (_names(folder / kind) for kind in (EXISTING, ENABLED, DISABLED))
    unsure = disabled is None and begun(folder)
    bad = [folder / DISABLED] if unsure else []
    if enabled is None and (existing is not None or os.path.lexists(folder / ENABLED)):
        bad.append(folder / ENABLED)
    if existing is None and os.path.lexists(folder / EXISTING):
        bad.append(folder / EXISTING)
    lost = loss(folder, " and ".join(map(str, bad))) if bad or os.path.lexists(folder / LOST) else None
    return Choices(existing, set(enabled or ()), set(disabled or ()), unsure, lost)


def loss(folder: Path, what: str) -> str:
    """The sentence about the loss of ``what``; without, of a loss that a file tells of already."""
    return (
        f"what people chose for domains was lost ({f'{what} cannot be used' if what else f'when: see {folder / LOST}'}): domains that are "
        f"not known to be enabled are left alone; enable those that may be placed (pcinuma enable NAME), and then: rm {folder / LOST}"
    )


def choose(folder: Path, uuid: str, *, enabled: bool, name: str) -> None:
    """Put a person's choice for the domain ``uuid``, called ``name``, on the disk. Raises OSError, and then nothing was chosen."""
    if not _UUID.match(uuid):
        raise ValueError(f"{uuid!r} is no UUID")
    for kind in (DISABLED, ENABLED):
        if _names(folder / kind) is None:
            if os.path.lexists(folder / kind):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder / kind))
            _put(folder, kind, ())
    into, out_of = (ENABLED, DISABLED) if enabled else (DISABLED, ENABLED)
    file, other = folder / into / uuid, folder / out_of / uuid
    known = os.path.lexists(file)
    try:
        if not known:
            _write(file, f"{into} {_today()} {name}")
            _flush(folder / into)
        if os.path.lexists(other):
            other.unlink()
            _flush(folder / out_of)
        _flush(folder)
    except OSError:
        if not known:
            file.unlink(missing_ok=True)
        raise


def establish(folder: Path, existing: Iterable[str], disable: Iterable[str] = (), lost: Optional[str] = None) -> Choices:
    """Settle what is not known yet: which domains existed, and those that are to be disabled unless somebody enabled them.

    What is on the disk stays, and is what comes back. ``lost``: what a file shall complain of. Raises OSError; it may be called again.
    """
    now = read(folder)
    lost = now.lost or lost
    if lost and not os.path.lexists(folder / LOST):
        _write(folder / LOST, f"{_today()} {lost}")
    _put(folder, DISABLED, now.disabled | (set(disable) - now.enabled))
    _put(folder, ENABLED, now.enabled)
    _put(folder, EXISTING, (now.existing or frozenset()) | set(existing))  # the last: without it, all of this is done again
    return read(folder)


def _names(folder: Path) -> Optional[frozenset[str]]:
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    return frozenset(name for name in names if _UUID.match(name)) if _README in names else None


def _put(folder: Path, kind: str, uuids: Iterable[str]) -> None:
    """Have these records in a folder; one that is not there, or is none, appears with all of them at once."""
    target = folder / kind
    there = _names(target)
    into = target if there is not None else folder / f"{kind}.new"
    if there is None:
        shutil.rmtree(into, ignore_errors=True)
        into.mkdir(mode=0o700)
        _write(into / _README, _MEANING[kind])
    for uuid in sorted(set(uuids) - (there or frozenset())):
        if _UUID.match(uuid):
            os.close(os.open(into / uuid, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    _flush(into)
    if there is None:
        if os.path.lexists(target):
            target.rename(folder / f"{kind}.unusable-{time.strftime('%Y%m%dT%H%M%S')}")
        into.rename(target)
    _flush(folder)


def _write(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.write(text + "\n")
        stream.flush()
        os.fsync(descriptor)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _today() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
