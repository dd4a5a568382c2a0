# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``pcinuma verify`` prints, whoever said it: the guest's kernel or the live XML; a hostile guest's words included."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import pytest

from pcinuma.cli import guest_agent, main, verify
from pcinuma.cli.sources import DomainSource
from pcinuma.guest.agent import AgentError, AgentState, Exchange, GuestAgent, Refused
from tests.hosts.domains import Domain
from tests.hosts.guest_kernel import Agent, kernel
from tests.hosts.machines import MACHINES
from tests.waiting import CHECKOUT

CHANNEL = b"<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel></devices>"
PLACED = (CHECKOUT / "tests/golden/eight-gpus-switch-out.xml").read_bytes().replace(b"</devices>", CHANNEL)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``pcinuma verify vm1 WORDS`` of a running guest with this agent, as if libvirt had passed it on."""
    monkeypatch.setenv("PCINUMA_ROOT", str(MACHINES["eight-gpus"]().write(tmp_path)))

    def run(agent: Exchange, *words: str, xml: bytes = PLACED) -> Ran:
        def ask(domain: str, work: Callable[[GuestAgent], Any], seconds: float) -> Any:
            return work(GuestAgent(agent, seconds))

        monkeypatch.setattr(verify, "ask", ask)
        monkeypatch.setattr(verify, "read_source", lambda text, live: DomainSource("vm1", xml, {}, live))
        code = main(["verify", "vm1", *words])
        return Ran(code, *capsys.readouterr())

    return run


def test_the_guests_own_addresses_and_drivers_are_shown_and_who_said_it(command: Command, tmp_path: Path) -> None:
    there = Agent(kernel(PLACED, tmp_path))
    done = command(there)
    assert done.code == 0
    assert done.out.count("PASS") == done.out.count("some") == 16
    assert done.out.rstrip().endswith("The guest's kernel was asked through its agent.")
    said = json.loads(command(there, "--json").out)
    assert (said["passed"], said["from"], said["agent"]["state"]) == (True, "guest", "answered")
    assert all(device["guest"]["address"] in done.out for device in said["devices"])
    assert there.left_open == 0


@pytest.mark.parametrize("words", ["", "\x1b[31mred\x1b[0m\n\u202eforged: PASS", "\ud800", "x" * 100_000])
def test_what_a_guest_says_instead_forges_nothing_and_the_xml_is_gone_by(command: Command, words: str) -> None:
    def exchange(asked: str, seconds: float) -> str:
        raise Refused(words)

    done = command(exchange)
    assert (done.code, sum(line.startswith("PASS") for line in done.out.splitlines())) == (0, 16)
    assert done.out.splitlines()[-1].startswith("From the live XML: the guest's agent gives no access to its kernel's sysfs")
    assert all(line.isprintable() for line in done.out.splitlines())
    assert len(done.out) < 5000
    said = json.loads(command(exchange, "--json").out)
    assert (said["from"], said["agent"]["state"], {device["guest"] for device in said["devices"]}) == ("xml", "unreadable", {None})


def test_an_agent_that_fails_half_way_counts_as_none(command: Command, tmp_path: Path) -> None:
    files = kernel(PLACED, tmp_path)
    files.pop(min(path for path in files if path.endswith("/uevent")))  # this alone would fail the first device
    files[max(path for path in files if path.endswith("/numa_node"))] = b"nonsense"
    done = command(Agent(files))
    assert (done.code, done.out.count("PASS")) == (0, 16)
    assert "From the live XML: the answers of the guest's agent make no sense" in done.out


def test_what_is_to_be_said_of_all_devices_is_said_once(command: Command) -> None:
    domain = Domain()
    for number in range(4):
        for offset in (4, 5, 6, 7):
            domain.hostdev(f"{0x20 + 0x30 * number + offset:02x}:00.0")
    done = command(Agent({}), xml=domain.raw())
    (line,) = (line for line in done.out.splitlines() if "no guest cell stands for" in line)
    assert line.startswith("all 16 devices: ")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "x"])
def test_a_time_that_is_none_is_wrong_usage(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["verify", "vm1", "--timeout", seconds])
    except SystemExit as ended:  # argparse's own way out
        code = int(str(ended.code))
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_libvirt_that_never_comes_back_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(guest_agent, "_ask", lambda domain, work, seconds: over.wait())
    monkeypatch.setattr(guest_agent, "_GRACE", 0.05)
    try:
        with pytest.raises(AgentError) as caught:
            guest_agent.ask("vm1", lambda agent: None, 0.05)
    finally:
        over.set()
    assert caught.value.state is AgentState.SILENT


@pytest.mark.parametrize(
    ("names", "state"),
    [
        (guest_agent._SILENT, AgentState.SILENT),
        (guest_agent._GONE, AgentState.DISCONNECTED),
        (guest_agent._NOT_ALLOWED, AgentState.NOT_ALLOWED),
        (("SYSTEM_ERROR", "RPC"), AgentState.SILENT),
        (guest_agent._REFUSED, None),
    ],
)
def test_libvirts_errors_are_told_apart(names: tuple[str, ...], state: Optional[AgentState]) -> None:
    libvirt = pytest.importorskip("libvirt")
    for name in names:
        code = getattr(libvirt, f"VIR_ERR_{name}", None)
        if code is None:
            continue  # an older libvirt

        class Binding:
            @staticmethod
            def qemuAgentCommand(domain: object, command: str, seconds: int, flags: int, code: int = code) -> str:
                error = libvirt.libvirtError("said")
                error.err = (code, 0, "said", 0, None, None, None, -1, -1)
                raise error

        with pytest.raises((AgentError, Refused)) as caught:
            guest_agent._exchange(Binding, None, "{}", 1)
        assert getattr(caught.value, "state", None) is state, name
