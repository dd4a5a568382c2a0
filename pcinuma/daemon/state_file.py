# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writing the :class:`~pcinuma.daemon.state.State`, in a thread of its own, several changes in one go.

The file is replaced atomically, so that a kill at any moment leaves it whole. A choice of a person is on the disk before anything follows
from it, or refused (DaemonError); of the rest, what cannot be *written* costs memory over a restart, nothing else, and is one of the
``problems`` that ``status`` tells.
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterable, Optional, TypeVar

from pcinuma.daemon import choices
from pcinuma.daemon.choices import Choices
from pcinuma.daemon.state import FILE, State, put_old_choices, to_json
from pcinuma.errors import DaemonError
from pcinuma.log import log

SAVE_DELAY = 0.1
"""Seconds in which changes gather before they are written; with thousands of domains more (:data:`SHARE`)."""
SHARE = 20
"""What writing took, this many times, passes until the next."""
TRY_AGAIN = 5.0

T = TypeVar("T")


class StateFile:
    """Writes a :class:`State` to its folder whenever it changed. Use it from the event loop."""

    def __init__(self, folder: Path, state: State) -> None:
        self._folder = folder
        self._state = state
        self._thread = ThreadPoolExecutor(1, "state")
        self._timer: Optional[asyncio.TimerHandle] = None
        self._failed: Optional[str] = None
        self._took = 0.0

    @property
    def problems(self) -> list[str]:
        """What is wrong with the state, in sentences that say what to do."""
        return [text for text in (self._state.lost, self._failed) if text]

    def changed(self) -> None:
        """What is remembered of domains changed: it will be written in a moment."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(max(SAVE_DELAY, SHARE * self._took), self._write_soon)

    async def written(self) -> bool:
        """Write what is remembered as it is now; return whether it is on the disk."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return await self._in_thread(self._write, to_json(self._state.domains))

    async def choose(self, uuid: str, name: str, *, enabled: bool) -> bool:
        """Put a person's choice on the disk, and then take it into account; whether it is a new one. Raises DaemonError, and then it is
        not in force."""
        state = self._state
        if uuid in (state.enabled - state.disabled if enabled else state.disabled - state.enabled):
            return False
        try:
            await self._in_thread(lambda: choices.choose(self._folder, uuid, enabled=enabled, name=name))
        except OSError as error:
            word = "enabled" if enabled else "disabled"
            raise DaemonError(
                f"not {word}: that cannot be written to {self._folder} ({error.strerror or error})",
                subject=name,
                hint=f"make room or mend that, and try again; until then it is as it was (see: df {self._folder})",
            ) from None
        state.choose(uuid, enabled=enabled)
        return True

    async def take_stock(self, uuids: Iterable[str]) -> None:
        """libvirt has these domains: at the first start they are those that existed; after a loss, see :mod:`~pcinuma.daemon.choices`.

        Comes back when that is on the disk: nothing is placed while a crash would forget what may be placed.
        """
        state, uuids = self._state, frozenset(uuids)
        if state.settled:
            return
        if state.existing is None and uuids:
            log.info("first start: the domains that exist are left alone until enabled", domains=len(uuids))
        while True:
            try:
                known = await self._in_thread(self._settle, uuids)
                break
            except OSError as error:
                self._fails(error)
                await asyncio.sleep(TRY_AGAIN)
        self._failed = None
        state.existing, state.enabled, state.disabled, state.lost = known.existing, known.enabled, known.disabled, known.lost
        state.unsure, state.old, state.settled = False, None, True

    def _settle(self, uuids: frozenset[str]) -> Choices:
        state = self._state
        if state.old is not None:
            put_old_choices(self._folder, state, state.old)
        disable = uuids - state.enabled if state.unsure else ()
        return choices.establish(self._folder, uuids if state.existing is None else state.existing, disable, state.lost)

    def _write_soon(self) -> None:
        self._timer = None
        began = time.monotonic()
        content = to_json(self._state.domains)
        self._took = time.monotonic() - began
        self._thread.submit(self._write, content)

    def _write(self, data: bytes) -> bool:
        if self._state.old is not None:
            return False  # the file of version 1 is still needed
        try:
            replace_file(self._folder / FILE, data)
        except OSError as error:
            self._fails(error)
            return False
        self._failed = None
        return True

    def _fails(self, error: OSError) -> None:
        failed = f"the state cannot be written to {self._folder} ({error.strerror or error}): make room or mend that"
        if failed != self._failed:
            log.error(failed)
        self._failed = failed

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.wrap_future(self._thread.submit(function, *arguments))


def replace_file(file: Path, data: bytes) -> None:
    """Put ``data`` in the place of ``file`` so that a crash leaves the old or the new content, whole. Raises OSError."""
    new = file.with_name(f"{file.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, file)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
