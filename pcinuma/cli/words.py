"""Reports in words: one place that turns outcomes and reason codes into the sentences that people read.

The sentences themselves are :class:`pcinuma.placement.reason.Reason`'s; nothing here says them in other words.
"""

from __future__ import annotations

from typing import Any, Mapping, Optional

from pcinuma.placement.reason import Reason

_SENTENCES = {reason.value: reason.sentence for reason in Reason}


def sentence(code: Optional[str]) -> str:
    """The sentence of a reason code; the code itself if a newer daemon knows one that this program does not."""
    if code is None:
        return ""
    return _SENTENCES.get(code, code)


def why(report: Mapping[str, Any]) -> str:
    """Why a domain is as it is: the report's own message where it has one, else the reason's sentence."""
    return str(report["message"] or sentence(report["reason"]))


def placed_of(report: Mapping[str, Any]) -> str:
    """``3 of 4 devices``."""
    devices = report["devices"]
    placed = sum(bool(device["placed"]) for device in devices)
    return f"{placed} of {len(devices)} device{'' if len(devices) == 1 else 's'}"


def node(number: Optional[int]) -> str:
    """A host node in a table."""
    return "no node" if number is None else f"node {number}"


def cell(number: Optional[int]) -> str:
    """A guest cell in a table."""
    return "no cell" if number is None else f"cell {number}"
