# SPDX-License-Identifier: LGPL-2.1-or-later
"""What outlives the process: what people chose for domains (:mod:`~pcinuma.daemon.choices`), and what is remembered of each domain.

The latter is one JSON file: the last decision about each domain, and the guest addresses that guests already ran with (``ran_with``: of
devices that somebody put on our ports). Without it, decisions are made again. A record in it that cannot be used is left out, a file that
cannot be read is kept aside. The event loop owns the :class:`State` and changes it; :mod:`~pcinuma.daemon.state_file` writes it.

Version 1 of the file held the choices as well. They are taken over from it, once; until they are on the disk that file stays.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

from pcinuma.address import PciAddress
from pcinuma.daemon import choices
from pcinuma.daemon.choices import Choices
from pcinuma.log import log

VERSION = 2
DEFAULT_FOLDER = "/var/lib/pcinuma"
FILE = "state.json"


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
        put_old_choices(folder, state, old)
    except OSError as error:
        log.error("state of an older version not taken over yet", folder=str(folder), error=str(error))
        state.old = old


def put_old_choices(folder: Path, state: State, old: Choices) -> None:
    """Write the choices of a file of version 1, one file each. Raises OSError."""
    for uuid in sorted(old.enabled | old.disabled):
        record = state.domains.get(uuid)
        try:
            choices.choose(folder, uuid, enabled=uuid not in old.disabled, name=record.name if record else "")
        except ValueError:
            log.warning("a choice for what is no domain", uuid=uuid)
    if old.existing is not None:
        choices.establish(folder, old.existing)
