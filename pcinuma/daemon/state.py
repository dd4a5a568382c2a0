"""What outlives the process: what people chose for domains (:mod:`~pcinuma.daemon.choices`), and what is remembered of each domain.

The latter is one JSON file, replaced atomically, that a kill at any moment leaves whole: the last decision about each domain, and the
guest addresses that guests already ran with (``ran_with``: of devices that somebody put on our ports). Without it, decisions are made
again. A record in it that cannot be used is left out, a file that cannot be read is kept aside.

The event loop owns the :class:`State` and changes it; :class:`StateFile` writes it in a thread of its own, several changes in
one go. A choice of a person is on the disk before anything follows from it, or refused; of the rest, what cannot be *written* costs
memory over a restart, nothing else.

Version 1 of the file held the choices as well. They are taken over from it, once; until they are on the disk that file stays.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, NamedTuple, Optional, TypeVar

from pcinuma.address import PciAddress
from pcinuma.daemon import choices
from pcinuma.daemon.choices import Choices
from pcinuma.errors import DaemonError
from pcinuma.log import log

VERSION = 2
DEFAULT_FOLDER = "/var/lib/pcinuma"
FILE = "state.json"
SAVE_DELAY = 0.1
"""Seconds in which changes gather before they are written; with thousands of domains more (:data:`SHARE`)."""
SHARE = 20
"""What writing took, this many times, passes until the next."""
TRY_AGAIN = 5.0

T = TypeVar("T")


@dataclass(frozen=True)
class Decision:
    """What was last decided about a domain, by whom, and when (ISO 8601). ``devices`` and ``placed`` are counts."""

    outcome: str
    reason: Optional[str]
    message: Optional[str]
    policy: Optional[str]
    devices: int
    placed: int
    when: str
    by: str


@dataclass
class Record:
    """What is known of one domain."""

    name: str
    decision: Optional[Decision] = None
    ran_with: frozenset[PciAddress] = frozenset()


@dataclass
class State(Choices):
    """The whole state. ``settled``: which domains existed, and all choices, are on the disk; ``old``: choices still to be taken over."""

    domains: dict[str, Record] = field(default_factory=dict)
    settled: bool = False
    old: Optional[Choices] = None


class Content(NamedTuple):
    """What a state file says. ``unusable``: names of domains whose records cannot be used; ``old``: the choices in one of version 1."""

    domains: dict[str, Record]
    unusable: list[str]
    old: Optional[Choices]


def to_json(domains: dict[str, Record]) -> bytes:
    """The file's content; the same records give the same bytes."""
    records = (
        json.dumps(uuid)
        + ": "
        + json.dumps(
            {
                "name": record.name,
                "decision": vars(record.decision) if record.decision else None,
                "ran_with": [str(address) for address in sorted(record.ran_with)],
            }
        )
        for uuid, record in sorted(domains.items())
    )
    return ('{"version": %d, "domains": {\n' % VERSION + ",\n".join(records) + "\n}}\n").encode()


def from_json(data: bytes) -> Content:
    """Read a file's content. Raises ValueError for anything that is no state of this version or the one before."""
    content = json.loads(data)
    version = content.get("version") if isinstance(content, dict) else None
    if version not in (1, VERSION):
        raise ValueError(f"no state of version {VERSION}" if version is None else f"state of version {version}, not {VERSION}")
    records = content.get("domains")
    if not isinstance(records, dict):
        raise ValueError("no domains")
    domains, unusable = {}, []
    for uuid, record in records.items():
        try:
            domains[uuid] = _record(record)
        except ValueError:
            unusable.append(uuid)
    return Content(domains, unusable, _old_choices(content) if version == 1 else None)


def _old_choices(content: dict[str, Any]) -> Choices:
    existing = content.get("existing")
    return Choices(
        None if existing is None else frozenset(_strings(existing)),
        set(_strings(content.get("enabled"))),
        set(_strings(content.get("disabled"))),
    )


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("a list of names was expected")
    return value


def _record(value: Any) -> Record:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError("a domain without a name")
    addresses = [PciAddress.parse(text) for text in _strings(value.get("ran_with"))]
    decision = value.get("decision")
    if decision is not None:
        try:
            decision = Decision(**decision)
        except TypeError as error:
            raise ValueError(str(error)) from None
        for name, kinds in _DECISION_TYPES.items():
            if not isinstance(getattr(decision, name), kinds):
                raise ValueError(f"a decision's {name} is of the wrong type")
    return Record(value["name"], decision, frozenset(address for address in addresses if address is not None))


_DECISION_TYPES = {
    **dict.fromkeys(("outcome", "when", "by"), (str,)),
    **dict.fromkeys(("reason", "message", "policy"), (str, type(None))),
    **dict.fromkeys(("devices", "placed"), (int,)),
}


def load(folder: Path) -> State:
    """The state in ``folder``. What cannot be used is logged, and kept aside."""
    begun = choices.begun(folder)
    known = choices.read(folder)
    state = State(known.existing, known.enabled, known.disabled, known.unsure, known.lost)
    file = folder / FILE
    try:
        content = from_json(file.read_bytes())
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RecursionError) as error:
        kept = _keep_aside(file)
        log.error("state unusable: what was decided about each domain is forgotten", file=str(file), error=str(error), kept_aside=kept)
        if not begun:  # the choices were in there
            state.unsure, state.lost = True, choices.loss(folder, str(file))
    else:
        state.domains = content.domains
        if content.unusable:
            log.warning("records of domains unusable", file=str(file), domains=content.unusable)
        if content.old is not None:
            _take_over(folder, state, content.old)
    if state.lost:
        log.error(state.lost)
    recorded = os.path.lexists(folder / choices.LOST) or not state.lost
    state.settled = state.existing is not None and not state.unsure and recorded and state.old is None
    return state


def _keep_aside(file: Path) -> str:
    aside = file.with_name(f"{file.name}.unusable-{time.strftime('%Y%m%dT%H%M%S')}")
    try:
        file.rename(aside)
    except OSError as error:
        return f"not possible: {error}"
    return str(aside)


def _take_over(folder: Path, state: State, old: Choices) -> None:
    """Take choices over from a file of version 1: they are the newer ones, should an older pcinuma have run meanwhile."""
    for uuid in sorted(old.enabled | old.disabled):
        state.choose(uuid, enabled=uuid not in old.disabled)
    if old.existing is not None:
        state.existing = old.existing | (state.existing or frozenset())
    try:
        _put_old(folder, state, old)
    except OSError as error:
        log.error("state of an older version not taken over yet", folder=str(folder), error=str(error))
        state.old = old


def _put_old(folder: Path, state: State, old: Choices) -> None:
    for uuid in sorted(old.enabled | old.disabled):
        record = state.domains.get(uuid)
        try:
            choices.choose(folder, uuid, enabled=uuid not in old.disabled, name=record.name if record else "")
        except ValueError:
            log.warning("a choice for what is no domain", uuid=uuid)
    if old.existing is not None:
        choices.establish(folder, old.existing)


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
            _put_old(self._folder, state, state.old)
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
