# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent of a running guest by way of libvirt, for the commands that ask it.

libvirt passes agent commands on by ``virDomainQemuAgentCommand`` only, for which a connection must be writable; it notes that it did
(``custom-ga-command`` under "tainted" in ``virsh dominfo``, which has no consequence). The work runs in a thread of its own, so that not
even a libvirtd that hangs keeps the command longer than it was given.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, TypeVar, Union

from pcinuma.cli.connect import connection, find_domain, libvirt_module
from pcinuma.domain.xml import Document
from pcinuma.errors import PcinumaError
from pcinuma.guest.agent import NAME, READING, AgentError, AgentState, GuestAgent, Refused
from pcinuma.guest.seen import LINUX
from pcinuma.model import Domain
from pcinuma.settings import Policy

SECONDS = 30.0
_GRACE = 10.0
_SILENT = ("AGENT_UNRESPONSIVE", "AGENT_UNSYNCED", "AGENT_COMMAND_TIMEOUT", "OPERATION_TIMEOUT")
_GONE = ("OPERATION_INVALID", "NO_SUPPORT", "CONFIG_UNSUPPORTED", "ARGUMENT_UNSUPPORTED", "NO_DOMAIN")
_NOT_ALLOWED = ("OPERATION_DENIED", "ACCESS_DENIED", "AUTH_FAILED", "AUTH_CANCELLED", "AUTH_UNAVAILABLE")
_REFUSED = ("INTERNAL_ERROR", "AGENT_COMMAND_FAILED")

Answer = TypeVar("Answer")


def require_agent(xml: bytes, domain: Domain) -> None:
    """Raises AgentError unless the guest with this live ``xml`` has an agent that may be asked."""
    if domain.policy is Policy.OFF:
        raise AgentError(AgentState.OFF)
    channels = Document(xml).root.findall("devices/channel/target")
    states = [target.get("state") for target in channels if target.get("name") == NAME]
    if not states:
        raise AgentError(AgentState.NONE)
    if "connected" not in states:
        raise AgentError(AgentState.DISCONNECTED)


def readable(agent: GuestAgent) -> None:
    """Raises AgentError unless the agent lets us read the sysfs of a Linux kernel."""
    agent.require(READING)
    if agent.read(LINUX, 64) is None:
        raise AgentError(AgentState.UNREADABLE, f"it has no {LINUX}")


def ask(domain: str, work: Callable[[GuestAgent], Answer], seconds: float) -> Answer:
    """What ``work`` makes of the agent of a running domain. Raises AgentError where it cannot be asked, or not in time."""
    found: list[Union[Answer, Exception]] = []

    def run() -> None:
        try:
            found.append(_ask(domain, work, seconds))
        except Exception as error:  # raised again below, where somebody waits for it
            found.append(error)

    thread = threading.Thread(target=run, name="guest agent", daemon=True)
    thread.start()
    thread.join(seconds + _GRACE)
    if not found:
        raise AgentError(AgentState.SILENT, f"libvirt did not come back within {seconds + _GRACE:g} s")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _ask(domain: str, work: Callable[[GuestAgent], Answer], seconds: float) -> Answer:
    try:
        import libvirt_qemu
    except ImportError as error:
        raise AgentError(AgentState.NOT_ALLOWED, "Python's libvirt binding has no libvirt_qemu") from error
    try:
        with connection(write=True) as opened:
            found = find_domain(opened, domain)

            def exchange(command: str, left: float) -> str:
                return _exchange(libvirt_qemu, found, command, left)

            return work(GuestAgent(exchange, seconds))
    except AgentError:
        raise
    except PcinumaError as error:
        raise AgentError(AgentState.NOT_ALLOWED, error.what) from error


def _exchange(libvirt_qemu: Any, domain: Any, command: str, seconds: float) -> str:
    libvirt = libvirt_module()
    try:
        return str(libvirt_qemu.qemuAgentCommand(domain, command, max(1, round(seconds)), 0))
    except libvirt.libvirtError as error:
        code, text = error.get_error_code(), error.get_error_message() or str(error)
        kinds = ((_SILENT, AgentState.SILENT), (_GONE, AgentState.DISCONNECTED), (_NOT_ALLOWED, AgentState.NOT_ALLOWED))
        for names, state in kinds:
            if code in [getattr(libvirt, f"VIR_ERR_{name}", None) for name in names]:
                raise AgentError(state, text) from error
        if code in [getattr(libvirt, f"VIR_ERR_{name}", None) for name in _REFUSED]:
            raise Refused(text) from error
        raise AgentError(AgentState.SILENT, text) from error
