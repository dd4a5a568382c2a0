"""What outlives the process: one JSON file, replaced atomically, that a kill at any moment leaves whole.

It holds which domains pcinuma may touch (those that existed before its first start, those enabled and disabled by a person),
the last decision about each domain, and the guest addresses that guests already ran with (``ran_with``: of devices that
somebody put on our ports).

The event loop owns the :class:`State` and changes it; :class:`StateFile` writes it in a thread of its own, several changes in
one go. A file that cannot be read is kept aside and the daemon starts as on its first day: whatever exists then is left alone
until it is enabled, for guessing otherwise would move devices in somebody's guest. A file that cannot be *written* costs memory
over a restart, nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

from pcinuma.address import PciAddress
from pcinuma.daemon.log import log

VERSION = 1
DEFAULT_FOLDER = "/var/lib/pcinuma"
FILE = "state.json"
SAVE_DELAY = 0.1
"""Seconds in which changes gather before they are written."""


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
class State:
    """The whole state. Domains are named by UUID. ``existing`` is None until libvirt's domains were listed for the first time."""

    existing: Optional[frozenset[str]] = None
    enabled: set[str] = field(default_factory=set)
    disabled: set[str] = field(default_factory=set)
    domains: dict[str, Record] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """The file's content; the same state gives the same bytes."""
        return json.dumps(
            {
                "version": VERSION,
                "existing": None if self.existing is None else sorted(self.existing),
                "enabled": sorted(self.enabled),
                "disabled": sorted(self.disabled),
                "domains": {
                    uuid: {
                        "name": record.name,
                        "decision": asdict(record.decision) if record.decision else None,
                        "ran_with": [str(address) for address in sorted(record.ran_with)],
                    }
                    for uuid, record in sorted(self.domains.items())
                },
            },
            indent=1,
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> State:
        """Read a file's content. Raises ValueError for anything that :meth:`to_json` does not write."""
        content = json.loads(data)
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError("no state of version %d" % VERSION)
        existing = content.get("existing")
        records = content.get("domains")
        if not isinstance(records, dict):
            raise ValueError("no domains")
        return cls(
            None if existing is None else frozenset(_strings(existing)),
            set(_strings(content.get("enabled"))),
            set(_strings(content.get("disabled"))),
            {uuid: _record(record) for uuid, record in records.items()},
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
    """The state in ``folder``; a new one if there is none, or none that can be used (which is logged, and the file kept aside)."""
    file = folder / FILE
    try:
        return State.from_json(file.read_bytes())
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, RecursionError) as error:
        aside = file.with_name(f"{FILE}.unusable-{time.strftime('%Y%m%dT%H%M%S')}")
        try:
            file.rename(aside)
            kept = str(aside)
        except OSError as failure:
            kept = f"not possible: {failure}"
        log.error(
            "state unusable: every domain that exists now is left alone until it is enabled (pcinuma enable NAME)",
            file=str(file),
            error=str(error),
            kept_aside=kept,
        )
        return State()


class StateFile:
    """Writes a :class:`State` to its file whenever it changed. Use it from the event loop."""

    def __init__(self, folder: Path, state: State) -> None:
        self._folder = folder
        self._state = state
        self._thread = ThreadPoolExecutor(1, "state")
        self._timer: Optional[asyncio.TimerHandle] = None
        self._failing = False

    def changed(self) -> None:
        """The state changed: it will be written in a moment."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SAVE_DELAY, self._write_soon)

    async def written(self) -> bool:
        """Write the state as it is now; return whether it is on the disk."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return await asyncio.wrap_future(self._thread.submit(self._write, self._state.to_json()))

    def _write_soon(self) -> None:
        self._timer = None
        self._thread.submit(self._write, self._state.to_json())

    def _write(self, data: bytes) -> bool:
        try:
            replace_file(self._folder / FILE, data)
        except OSError as error:
            if not self._failing:
                log.error("state not written", file=str(self._folder / FILE), error=str(error))
            self._failing = True
            return False
        self._failing = False
        return True


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
