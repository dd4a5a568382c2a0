# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was decided about each domain: remembered for ``pcinuma status``, and logged, one event a decision.

A decision of the reconciler that says the same as the one before is logged at level debug only: a daemon that starts looks at
every domain. Finding a domain placed that was recorded as placed is no new decision.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Optional

from pcinuma.address import PciAddress
from pcinuma.daemon.state import Decision, Record, State
from pcinuma.daemon.state_file import StateFile
from pcinuma.engine import Result
from pcinuma.log import log
from pcinuma.reason import Outcome, Reason
from pcinuma.settings import Policy


class Decisions:
    """Records decisions in ``state``, which ``state_file`` keeps."""

    def __init__(self, state: State, state_file: StateFile) -> None:
        self._state = state
        self._state_file = state_file
        self._unplaced: dict[str, Counter[Optional[str]]] = {}

    def of(self, uuid: str) -> Optional[Decision]:
        """The last decision about a domain."""
        record = self._state.domains.get(uuid)
        return record.decision if record else None

    def unplaced(self, uuid: str) -> list[dict[str, Any]]:
        """How many devices are not placed for which reason, the domain's where a device has none of its own. After a restart each has the
        domain's until it is looked at."""
        decision, found = self.of(uuid), self._unplaced.get(uuid)
        if decision is None:
            return []
        if found is None or sum(found.values()) != decision.devices - decision.placed:
            found = Counter({decision.reason: decision.devices - decision.placed})
        return [{"reason": code, "devices": count} for code, count in sorted(found.items(), key=lambda item: item[0] or "") if count]

    def record(self, uuid: str, name: str, result: Result, policy: Policy, *, by: str, began: float, changed: bool = False) -> None:
        """Remember what ``by`` decided. ``began``: time.monotonic() when the work began; ``changed``: the definition was changed."""
        decision = Decision(
            result.outcome.value,
            result.reason.value if result.reason else None,
            result.message,
            policy.value,
            len(result.devices),
            sum(device.placed for device in result.devices),
            now(),
            by,
        )
        reasons = (device.reason or result.reason for device in result.devices if not device.placed)
        self._unplaced[uuid] = Counter(reason.value if reason else None for reason in reasons)
        if result.reason is Reason.ALREADY_PLACED and by == "reconciler":
            decision = self._still_placed(uuid, decision)
        news = self._keep(uuid, name, decision) or changed
        (log.info if news or by != "reconciler" else log.debug)(
            "decided",
            domain=name,
            outcome=decision.outcome,
            reason=decision.reason,
            message=None if result.reason and result.message == result.reason.sentence else decision.message,
            group_by=result.group_by.value if result.group_by else None,
            placed=f"{decision.placed}/{decision.devices}",
            changed=changed,
            by=by,
            duration_ms=round((time.monotonic() - began) * 1000, 1),
        )

    def failed(self, uuid: str, name: str, message: str, policy: Policy, *, by: str) -> None:
        """Remember that a domain could not be looked at: nothing was changed, what was known of its devices stands."""
        log.warning("a domain could not be looked at", domain=name, error=message, by=by)
        old = self.of(uuid) or Decision("", None, None, policy.value, 0, 0, "", by)
        self._keep(uuid, name, replace(old, outcome=Outcome.FALLBACK.value, reason=None, message=message, when=now(), by=by))

    def ran(self, uuid: str, ran_with: frozenset[PciAddress]) -> None:
        """A domain started with these addresses of foreign devices on our ports."""
        record = self._state.domains.get(uuid)
        if record is not None and record.ran_with != ran_with:
            record.ran_with = ran_with
            self._state_file.changed()

    def forget(self, uuid: str) -> None:
        """The domain is gone."""
        self._unplaced.pop(uuid, None)
        if self._state.domains.pop(uuid, None) is not None:
            self._state_file.changed()

    def _still_placed(self, uuid: str, decision: Decision) -> Decision:
        """The reconciler looked again, most often because of its own definition: what was decided before stands."""
        old = self.of(uuid)
        if old is None or old.placed != decision.placed:
            return decision
        if old.outcome != Outcome.PLACED.value and old.reason != Reason.ALREADY_PLACED.value:
            return decision
        running = old.reason == Reason.RUNNING.value
        old = replace(old, reason=None, message=None) if running else old
        return replace(old, devices=decision.devices, policy=decision.policy)

    def _keep(self, uuid: str, name: str, decision: Decision) -> bool:
        """Keep the decision; return whether it says anything new."""
        record = self._state.domains.setdefault(uuid, Record(name))
        old, record.decision = record.decision, decision
        if record.name == name and old is not None and replace(old, when="", by="") == replace(decision, when="", by=""):
            return False
        record.name = name
        self._state_file.changed()
        return True


def now() -> str:
    """The time as it is written everywhere: ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
