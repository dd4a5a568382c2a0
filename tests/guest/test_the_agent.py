# SPDX-License-Identifier: LGPL-2.1-or-later
"""The QEMU guest agent itself, run on this machine with a socket in place of the guest's serial port: what it really answers."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pcinuma.cli.guest_agent import readable
from pcinuma.guest.agent import READING, WRITING, AgentError, AgentState, GuestAgent, Refused
from pcinuma.guest.seen import LINUX
from pcinuma.lab import LabError, guest_agent
from tests import needs
from tests.waiting import until

SECONDS = 60.0


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        needs.kernel_cache().mkdir(parents=True, exist_ok=True)
        return guest_agent.program(needs.kernel_cache())
    except LabError as error:
        pytest.skip(str(error))


def _connects(connection: socket.socket, path: Path) -> bool:
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):  # bound, and not listening yet
        return False
    return True


@contextmanager
def running(program: Path, folder: Path, *options: str) -> Iterator[GuestAgent]:
    """An agent with ``options``, and libvirt's part of the conversation: a line out, a line back, errors as errors."""
    path = folder / "agent"
    argv = [str(program), "-m", "unix-listen", "-p", str(path), "-t", str(folder), *options]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(SECONDS)
                until(lambda: _connects(connection, path) or process.poll() is not None, "the agent to listen")
                lines = connection.makefile("rw")

                def exchange(command: str, seconds: float) -> str:
                    lines.write(command + "\n")
                    lines.flush()
                    answer = lines.readline()
                    error = json.loads(answer).get("error")
                    if error:
                        raise Refused(f"internal error: unable to execute QEMU agent command: {error['desc']}")
                    return answer

                yield GuestAgent(exchange, SECONDS)
        finally:
            process.kill()


def test_it_reads_and_writes_files_and_makes_a_folder(program: Path, tmp_path: Path) -> None:
    with running(program, tmp_path) as agent:
        readable(agent)
        agent.require(WRITING)
        assert agent.read(LINUX) == Path(LINUX).read_bytes()
        assert agent.read(str(tmp_path / "none")) is None
        assert agent.read(str(tmp_path / "none/below")) is None
        (tmp_path / "empty").write_bytes(b"")
        assert agent.read(str(tmp_path / "empty")) == b""
        file, data = tmp_path / "a/b/file", bytes(range(256)) * 300
        with pytest.raises(Refused, match="No such file or directory"):
            agent.write(str(file), data)
        agent.make_folder(str(file.parent))
        agent.write(str(file), data)
        assert file.read_bytes() == data == agent.read(str(file), len(data) + 1)
        assert agent.read(str(file), 100) == data[:100]


def test_a_configuration_space_is_read_as_far_as_it_is_asked_for(program: Path, tmp_path: Path) -> None:
    spaces = sorted(Path("/sys/bus/pci/devices").glob("*/config"))
    if not spaces:
        pytest.skip("this machine has no PCI devices")
    with running(program, tmp_path) as agent:
        found = agent.read(str(spaces[0]), 256)
        assert found is not None
        assert found[:4] == spaces[0].read_bytes()[:4]


@pytest.mark.parametrize("forbidden", ["guest-file-open", "guest-file-read", "guest-info,guest-file-open", "guest-info,guest-file-read"])
def test_one_that_forbids_files_says_so(program: Path, tmp_path: Path, forbidden: str) -> None:
    with running(program, tmp_path, "-b", forbidden) as agent, pytest.raises(AgentError) as caught:
        readable(agent)
    assert caught.value.state is AgentState.FORBIDDEN
    assert "guest-file" in caught.value.detail


def test_one_that_forbids_programs_reads_and_makes_no_folder(program: Path, tmp_path: Path) -> None:
    with running(program, tmp_path, "-b", "guest-exec") as agent:
        agent.require(READING)
        with pytest.raises(AgentError) as caught:
            agent.make_folder(str(tmp_path / "a"))
    assert caught.value.state is AgentState.FORBIDDEN
    assert not (tmp_path / "a").exists()


def test_a_folder_that_cannot_be_made_is_said(program: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with running(program, tmp_path) as agent, pytest.raises(Refused, match="mkdir"):
        agent.make_folder(str(tmp_path / "file/below"))
