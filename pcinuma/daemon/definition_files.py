# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every version of every definition, as libvirt writes it.

libvirt writes each definition to ``/etc/libvirt/qemu/NAME.xml`` (``virDomainDefSave`` in ``src/conf/domain_conf.c``) while it holds the
domain's lock and before it answers whoever changed it, and the kernel tells of each file (:mod:`~pcinuma.daemon.file_watch`). Two things
follow that libvirt itself does not offer:

* Changes that it sends no event for (``virsh attach-device --config``, ``vcpupin --config``, ``metadata --config``; libvirt 9.0 to 12)
  are heard of.
* What lay between the definition that we read and the one that we made is known (:meth:`DefinitionFiles.follow`), so that nothing is
  lost that somebody changed in those milliseconds.

Writes are numbered in the order in which libvirt made them. A call of :meth:`DefinitionFiles.now` that comes after libvirt's answer
to something counts every write before that answer. The text of a version is what ``XMLDesc`` with INACTIVE and SECURE says at that
moment, passwords included (measured), but for the warning on top; it is kept only of domains that are followed.

Without that folder (libvirt on another machine, or not installed yet) there is nothing to watch. Where it is there and the kernel watches
nothing for us (a machine has a limited number of inotify instances), that is tried again and again, and until then the folder's own time
says that something was written (:meth:`DefinitionFiles.watch_again`).
"""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections import OrderedDict
from contextlib import contextmanager
from errno import EMFILE, ENOSPC
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Optional

from pcinuma.daemon.file_watch import Watch, Written, open_watch
from pcinuma.log import log

FOLDER = Path("/etc/libvirt/qemu")
REMEMBERED = 8192
"""Domains of which is known when they were last written; of the others, that they were not since."""
_LIMITS = {EMFILE: "fs.inotify.max_user_instances", ENOSPC: "fs.inotify.max_user_watches"}
_SUFFIX = ".xml"
_UUID = 36


class Version(NamedTuple):
    """A definition that libvirt wrote: the number of the write, and its text, None if it was missed."""

    number: int
    text: Optional[bytes]


class Followed:
    """What libvirt writes of one domain, from when it was followed."""

    def __init__(self, files: DefinitionFiles, uuid: str, name: str) -> None:
        self.uuid = uuid
        self.name = name
        self._files = files
        self._versions: list[tuple[Version, Optional[tuple[int, int, int]]]] = []

    def now(self) -> Optional[int]:
        """:meth:`DefinitionFiles.now`."""
        return self._files.now()

    def last(self) -> int:
        """The number of the domain's last write, as of the last :meth:`now`."""
        return self._files.last(self.uuid)

    def there(self) -> bool:
        """Whether libvirt has a definition of that name at this moment. It removes the file with the definition."""
        return (self._files.folder / f"{self.name}{_SUFFIX}").exists()

    def since(self, number: int) -> list[Version]:
        """The versions after that write, as of the last :meth:`now`."""
        with self._files.lock:
            return [version for version, _ in self._versions if version.number > number]

    def copied(self) -> Followed:
        """(:class:`DefinitionFiles`)"""
        copy = Followed(self._files, self.uuid, self.name)
        copy._versions = list(self._versions)
        return copy

    def unseen(self) -> None:
        """:meth:`DefinitionFiles.unseen`."""
        self._files.unseen()

    def add(self, version: Version, identity: Optional[tuple[int, int, int]]) -> None:
        """(:class:`DefinitionFiles`) A version was written."""
        if identity is not None and self._versions and self._versions[-1][1] == identity:
            self._versions[-1] = (self._versions[-1][0]._replace(text=None), None)  # what was read as that one was this one already
        self._versions.append((version, identity))


class DefinitionFiles:
    """Calls ``changed`` in the event loop with a domain's UUID when its definition was written, and with None when it may have been
    anybody's. Every method but :meth:`watch` may be called in any thread."""

    def __init__(self, changed: Callable[[Optional[str]], None], folder: Path = FOLDER) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self._changed = changed
        self._watch: Optional[Watch] = None
        self._watched: Optional[tuple[int, int]] = None  # which folder
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._thread: Optional[int] = None  # the loop's
        self._reading = False
        self._blind = False
        self._number = 0
        self._last: OrderedDict[str, int] = OrderedDict()
        self._forgotten = 0
        self._untold = 0
        self._followed: dict[str, list[Followed]] = {}
        self._folder_changed: Optional[int] = None
        self._refused: Optional[OSError] = None
        self._woken_by: Optional[tuple[int, int]] = None  # a pipe that ends what reads at once

    @property
    def kind(self) -> Optional[str]:
        """How definitions are watched: ``fanotify``, ``inotify`` or, not at all, None."""
        return self._watch.kind if self._watch is not None and self._watched is not None and not self._blind else None

    def watch(self) -> None:
        """Watch from now on. Called again and again, since the folder may come later, or another in its place."""
        try:
            status = self.folder.stat()
        except OSError:
            self._watched = self._refused = None
            return
        if self._watched == (status.st_dev, status.st_ino):
            return
        if self._folder_changed is None:
            self._folder_changed = status.st_mtime_ns
        try:
            self._watch = self._watch or open_watch()
            self._watch.mark(self.folder)
        except OSError as error:
            self._refused_because(error)
            return
        self._refused = None
        with self.lock:
            self._number += 1
            self._last.clear()
            self._forgotten = self._number  # what was written before nobody has seen
        self._watched = status.st_dev, status.st_ino
        self._blind = False
        loop = _running_loop()
        (log.info if loop else log.debug)("definitions are watched", folder=str(self.folder), by=self._watch.kind)
        if self._reading:
            return
        self._reading = True
        if loop is not None:
            self._loop, self._thread = loop, threading.get_ident()
        if not self._watch.lossless:
            self._woken_by = os.pipe()
            threading.Thread(target=self._read_at_once, args=(self._watch, self._woken_by), name="definition-files", daemon=True).start()
        elif loop is not None:
            loop.add_reader(self._watch.fileno(), self.now)

    def watch_again(self) -> bool:
        """Where the kernel watched nothing before, try again; return whether anything may have been written that nobody heard of."""
        if self.kind is not None or self._blind:
            return False
        self.watch()
        if self.kind is not None:
            return True
        try:
            changed = self.folder.stat().st_mtime_ns  # each of libvirt's writes renames a file in it
        except OSError:
            return False
        before, self._folder_changed = self._folder_changed, changed
        return before not in (None, changed)

    def _refused_because(self, error: OSError) -> None:
        if self._refused is None or self._refused.errno != error.errno:
            log.warning("definitions cannot be watched", folder=str(self.folder), error=error.strerror)
        self._watched, self._refused = None, error

    @property
    def problem(self) -> Optional[str]:
        """What a person should know about the watching, and what to do."""
        if self._refused is None or self.kind is not None:
            return None
        limit = _LIMITS.get(self._refused.errno or 0)
        what = f"libvirt's definitions in {self.folder} cannot be watched ({self._refused.strerror})"
        then = "what is changed while pcinuma changes the same domain may be lost, and changes without an event are seen a moment later"
        return f"{what}: {then}" + (f"; raise {limit} (sysctl)" if limit else "")

    def forget(self) -> None:
        """The connection is gone; the next libvirt may be another one."""
        self._watched, self._blind, self._folder_changed = None, False, None

    def close(self) -> None:
        """Watch nothing any more, for good. For who has no event loop."""
        with self.lock:
            watch, self._watch, self._watched = self._watch, None, None
        if watch is None:
            return
        if self._woken_by is not None:
            os.write(self._woken_by[1], b"\0")  # who reads closes it
        else:
            watch.close()

    def _read_at_once(self, watch: Watch, woken_by: tuple[int, int]) -> None:
        poll = select.poll()
        poll.register(watch.fileno(), select.POLLIN)
        poll.register(woken_by[0], select.POLLIN)
        while woken_by[0] not in [descriptor for descriptor, _ in poll.poll()]:
            self.now()
        watch.close()
        for end in woken_by:
            os.close(end)

    def now(self) -> Optional[int]:
        """The number of the last write of all; None if definitions are not watched."""
        with self.lock:
            if self.kind is None:
                return None
            assert self._watch is not None
            for written in self._watch.read():
                self._heard(written)
            return self._number

    def _heard(self, written: Written) -> None:
        name = written.name
        if name is not None and not name.endswith(_SUFFIX):
            return
        name = name[: -len(_SUFFIX)] if name is not None else None
        text, uuid = _definition(written.text)
        if text is None and written.text is not None and self._watch is not None and self._watch.lossless:
            return  # no definition of libvirt's
        self._number += 1
        if uuid is not None:
            self._last[uuid] = self._number
            self._last.move_to_end(uuid)
            if len(self._last) > REMEMBERED:
                self._forgotten = max(self._forgotten, self._last.popitem(last=False)[1])
            concerned = self._followed.get(uuid, [])
        else:
            everybody = [followed for every in self._followed.values() for followed in every]
            concerned = [followed for followed in everybody if name in (None, followed.name)]
            others = {followed.uuid: self.last(followed.uuid) for followed in everybody}
            self._last.clear()
            self._last.update(others)
            self._last.update((followed.uuid, self._number) for followed in concerned)
            self._forgotten = self._number  # it may have been any of those that are not followed
        for followed in concerned:
            followed.add(Version(self._number, text), written.identity)
        if threading.get_ident() == self._thread:
            self._changed(uuid)
        elif self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._tell, uuid)
                self._untold += 1
            except RuntimeError:
                pass  # the loop has ended, and the daemon with it

    def _tell(self, uuid: Optional[str]) -> None:
        with self.lock:
            self._untold -= 1
        self._changed(uuid)

    @property
    def untold(self) -> int:
        """How many writes another thread has read, of which the event loop will be told in a moment."""
        with self.lock:
            return self._untold

    def last(self, uuid: str) -> int:
        """The number of the last write of a domain, or of one that was certainly not before that; as of the last :meth:`now`."""
        with self.lock:
            return self._last.get(uuid, self._forgotten)

    @contextmanager
    def follow(self, uuid: str, name: str) -> Iterator[Followed]:
        """Keep the versions of a domain from now on."""
        followed = Followed(self, uuid, name)
        self.now()  # what was written before belongs to nobody
        with self.lock:
            self._followed.setdefault(uuid, []).append(followed)
        try:
            yield followed
        finally:
            self.release(followed)

    def keep(self, followed: Followed) -> Followed:
        """Another one of the same, as of now, until it is released."""
        with self.lock:
            copy = followed.copied()
            self._followed.setdefault(copy.uuid, []).append(copy)
            return copy

    def release(self, followed: Followed) -> None:
        """Keep no versions for this one any more."""
        with self.lock:
            others = [other for other in self._followed.pop(followed.uuid, []) if other is not followed]
            if others:
                self._followed[followed.uuid] = others

    def unseen(self) -> None:
        """libvirt made a definition and nothing was written here: this is not the folder of that libvirt."""
        if not self._blind:
            log.warning("libvirt writes its definitions somewhere else", folder=str(self.folder))
        self._blind = True


def _running_loop() -> Optional[asyncio.AbstractEventLoop]:
    """None in a command, which has none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _definition(text: Optional[bytes]) -> tuple[Optional[bytes], Optional[str]]:
    """The definition in a file of libvirt's and its UUID; None if it is none, or not whole."""
    if text is None or not text.rstrip().endswith(b"</domain>"):
        return None, None
    if text.lstrip().startswith(b"<!--"):  # the warning, which holds the name
        text = text.partition(b"-->")[2]
    definition = text.lstrip()
    found = definition.find(b"<uuid>")
    if found < 0 or not definition.startswith(b"<domain"):
        return None, None
    return definition, definition[found + 6 : found + 6 + _UUID].decode("ascii", "replace")
