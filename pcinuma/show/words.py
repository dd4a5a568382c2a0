# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reports in words: one place that turns outcomes and reason codes into the sentences that people read.

The sentences themselves are :class:`pcinuma.reason.Reason`'s; nothing here says them in other words. Reports hold names and
messages that others wrote (a domain's, libvirt's), so whatever comes out of here is printable.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Optional

from pcinuma.printable import printable
from pcinuma.reason import Outcome, Reason

_SENTENCES = {reason.value: reason.sentence for reason in Reason}
_NOT_NOW = (Reason.MANAGED_SAVE.value, Reason.CONTENDED.value)


def sentence(code: Optional[str]) -> str:
    """The sentence of a reason code; the code itself if a newer daemon knows one that this program does not."""
    if code is None:
        return ""
    return _SENTENCES.get(code) or printable(code)


def why(report: Mapping[str, Any]) -> str:
    """Why a domain is as it is: the report's own message where it has one, else the reason's sentence."""
    return printable(str(report["message"])) if report["message"] else sentence(report["reason"])


def fell_back(report: Mapping[str, Any], *, changed: bool) -> str:
    """What outcome ``fallback`` came to. A placement that stands because no new plan could be made is not "not placed"; ``changed``: the
    definition is another than before, which a fallback does only to a placement that is known to be wrong."""
    if any(device["placed"] for device in report["devices"]):
        return f"stays as it was placed, {placed_of(report)}; it could not be looked at anew"
    return "goes back to the default layout" if changed else "not placed"


def is_fallback(report: Optional[Mapping[str, Any]]) -> bool:
    """Whether a report says that pcinuma could not place what it was to place."""
    return report is not None and report["outcome"] == Outcome.FALLBACK.value


def missed(report: Optional[Mapping[str, Any]]) -> bool:
    """Whether something was to be placed and is not: it could not be, or the definition could not be changed now."""
    return is_fallback(report) or (report is not None and report["reason"] in _NOT_NOW)


def placed_of(report: Mapping[str, Any]) -> str:
    """``3 of 4 devices``."""
    devices = report["devices"]
    placed = sum(bool(device["placed"]) for device in devices)
    return f"{placed} of {len(devices)} device{'' if len(devices) == 1 else 's'}"


def reasons(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Each reason for which devices are where they are, said once, with the ``source`` of every device that has it; in the report's order.

    The domain's own reason is left out: whoever says :func:`why` has said it of all of them.
    """
    found: dict[str, list[str]] = {}
    for device in report["devices"]:
        if device["reason"] is not None and device["reason"] != report["reason"]:
            found.setdefault(device["reason"], []).append(device["source"])
    return list(found.items())


def names(sources: Iterable[str]) -> str:
    """Sources in a row."""
    return ", ".join(map(printable, sources))


def node(number: Optional[int]) -> str:
    """A host node in a table."""
    return "no node" if number is None else f"node {number}"


def cell(number: Optional[int]) -> str:
    """A guest cell in a table."""
    return "no cell" if number is None else f"cell {number}"
