# SPDX-License-Identifier: LGPL-2.1-or-later
"""topology --nccl with a running guest: its own addresses in the file, and the file written into it; refusals in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest

from pcinuma.cli import main, nccl, topology
from pcinuma.cli.sources import DomainSource
from pcinuma.guest.agent import AgentError, AgentState, GuestAgent
from tests.hosts.guest_kernel import Agent, kernel
from tests.hosts.machines import MACHINES
from tests.waiting import CHECKOUT

CHANNEL = b"<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='%s'/></channel></devices>"
XML = (CHECKOUT / "tests/golden/two-nodes-out.xml").read_bytes()
FOLDERS = {"/var/run"}


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``pcinuma topology vm1 WORDS`` for a running guest with this agent, as if libvirt had passed it on."""
    root = MACHINES["two-sockets"]().write(tmp_path)

    def run(agent: Agent, *words: str, xml: bytes = XML.replace(b"</devices>", CHANNEL % b"connected")) -> Ran:
        def ask(domain: str, work: Callable[[GuestAgent], Any], seconds: float) -> Any:
            assert domain == "guest"
            return work(GuestAgent(agent, seconds, wait=lambda seconds: None))

        monkeypatch.setattr(nccl, "ask", ask)
        monkeypatch.setattr(topology, "read_source", lambda text, live: DomainSource("guest", xml, {}, live))
        code = main(["topology", "vm1", "--nccl", "--root", str(root), *words])
        return Ran(code, *capsys.readouterr())

    return run


def test_the_file_is_written_where_nccl_looks_and_its_folder_made(command: Command, tmp_path: Path) -> None:
    there = Agent(kernel(XML, tmp_path), folders=set(FOLDERS))
    done = command(there, "--install")
    written = there.files[nccl.FILE]
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [f"guest: made {nccl.FOLDER}", f"guest: wrote {nccl.FILE}, {len(written)} bytes"]
    assert written.decode() == command(there).out
    assert there.left_open == 0
    again = command(there, "--install")
    assert again.out.splitlines() == [f"guest: wrote {nccl.FILE}, {len(written)} bytes"]
    there.files[nccl.FILE] = b"somebody's"
    assert command(there, "--install").out.endswith("in place of another\n")


def test_the_addresses_are_those_that_the_guest_has(command: Command, tmp_path: Path) -> None:
    there = Agent(kernel(XML, tmp_path, lambda number: 1 + (number + 100) % 0xFF), folders={nccl.FOLDER})
    done = command(there, "--install")
    assert done.code == 0
    computed = command(there).out
    asked = there.files[nccl.FILE].decode()
    assert asked != computed
    assert asked.count("<pci") == computed.count("<pci")
    assert done.err.count("where 0000:") == 2
    assert command(there, "--live").out == asked


def test_a_device_that_the_kernel_does_not_have_is_not_in_the_file(command: Command, tmp_path: Path) -> None:
    files = kernel(XML, tmp_path)
    files.pop(min(path for path in files if path.endswith("/uevent")))
    done = command(Agent(files), "--live")
    assert done.code == 0
    assert "does not have it" in done.err
    assert done.out.count("<pci") == command(Agent(files)).out.count("<pci") - 1


@pytest.mark.parametrize(
    ("disabled", "message"),
    [
        ("guest-file-open", "forbids access to files"),
        ("guest-file-write", "forbids access to files"),
        ("guest-exec", f"has no {nccl.FOLDER}, and its agent does not make it"),
    ],
)
def test_an_agent_that_does_not_let_us_is_one_line(command: Command, tmp_path: Path, disabled: str, message: str) -> None:
    there = Agent(kernel(XML, tmp_path), (disabled,), set(FOLDERS))
    done = command(there, "--install")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert message in done.err
    assert "by hand" in done.err
    assert "half written" not in done.err
    assert nccl.FILE not in there.files
    assert there.left_open == 0


@pytest.mark.parametrize(
    ("xml", "state"),
    [
        (XML, AgentState.NONE),
        (XML.replace(b"</devices>", CHANNEL % b"disconnected"), AgentState.DISCONNECTED),
        (XML.replace(b"</devices>", CHANNEL % b"connected").replace(b":pcinuma xmlns", b":pcinuma policy='off' xmlns"), AgentState.OFF),
    ],
    ids=["no channel", "nobody", "off"],
)
def test_a_guest_without_an_agent_is_not_written_to_and_its_file_computed(
    command: Command, tmp_path: Path, xml: bytes, state: AgentState
) -> None:
    there = Agent(kernel(XML, tmp_path), folders={nccl.FOLDER})
    done = command(there, "--install", xml=xml)
    assert (done.code, done.out) == (1, "")
    assert state.sentence in done.err
    live = command(there, "--live", xml=xml)
    assert state.sentence in live.err
    assert live.out == command(there, xml=xml).out
    assert there.commands == []


@pytest.mark.parametrize("words", [["vm1", "--install"], ["./vm.xml", "--nccl", "--install"], ["vm1", "--nccl", "--timeout", "0"]])
def test_wrong_usage_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_half_written_file_is_said(command: Command, tmp_path: Path) -> None:
    there = Agent(kernel(XML, tmp_path), folders={nccl.FOLDER})
    answer = there.__call__

    class Dies(Agent):
        def __call__(self, command: str, seconds: float) -> str:
            if "guest-file-write" in command:
                raise AgentError(AgentState.SILENT, "gone")
            return answer(command, seconds)

    done = command(Dies({}), "--install")
    assert done.code == 1
    assert "half written" in done.err
