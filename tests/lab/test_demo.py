# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma demo`` that does not come to its end: it says so, at once, and leaves neither a process nor a file behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from pcinuma.lab import kernel
from pcinuma.lab.virtual_host import CHECKOUT
from tests import needs

DEMO = ["env", "--default-signal=HUP,INT,TERM", sys.executable, "-B", "-m", "pcinuma", "demo"]
"""With the signals as a terminal leaves them: it would inherit it if the tests were started with some ignored (``nohup``, ``&``)."""
PROMPT = 90
"""Seconds, many for a busy machine; a demonstration that ran on would need more."""


class Running(NamedTuple):
    """A demonstration whose hosts boot: two, or one where memory is short."""

    process: subprocess.Popen[str]
    hosts: list[psutil.Process]
    scratch: Path


@pytest.fixture
def running(lab_kernel: kernel.Kernel) -> Iterator[Running]:
    process = subprocess.Popen(
        DEMO, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield Running(process, *_hosts(process))
    finally:
        process.terminate()
        try:
            process.communicate(timeout=PROMPT)
        except subprocess.TimeoutExpired:
            for left in [*psutil.Process(process.pid).children(), process]:
                left.kill()
            process.communicate()


def _scratch_of(process: subprocess.Popen[str]) -> dict[psutil.Process, Path]:
    """The hosts that run now, and the demonstration's folder, which their command lines name. (A machine that tries KVM is none.)"""
    found = {}
    for child in psutil.Process(process.pid).children():
        try:
            folder = re.search(r"/var/tmp/pcinuma-demo-[^/]+", " ".join(child.cmdline()))
        except psutil.NoSuchProcess:
            continue
        if folder:
            found[child] = Path(folder[0])
    return found


def _hosts(process: subprocess.Popen[str]) -> tuple[list[psutil.Process], Path]:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        if _scratch_of(process):
            time.sleep(1)  # for the second one
            hosts = _scratch_of(process)
            return list(hosts), next(iter(hosts.values()))
        time.sleep(0.1)
    raise AssertionError(f"no virtual host came up: {process.communicate() if process.poll() is not None else process}")


def ended(running: Running) -> str:
    """Its words, when it has ended in time and left nothing."""
    out, errors = running.process.communicate(timeout=PROMPT)
    assert running.process.returncode == 1
    assert out == ""
    assert not [host for host in running.hosts if host.is_running() and host.status() != psutil.STATUS_ZOMBIE]
    assert not running.scratch.exists()
    assert "this takes about four minutes" in errors.splitlines()[0]
    return errors.splitlines()[-1]


# Of the three that are handled alike, one in every run; another one comes from the terminal, below.
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full), pytest.param(signal.SIGHUP, marks=pytest.mark.full)]
)
def test_a_signal_ends_it_with_both_hosts_and_all_files(running: Running, number: signal.Signals) -> None:
    running.process.send_signal(number)
    assert ended(running) == "pcinuma demo: stopped"


def test_a_terminal_s_ctrl_c_reaches_the_hosts_too_and_ends_it_the_same_way(running: Running) -> None:
    os.killpg(running.process.pid, signal.SIGINT)
    assert ended(running) == "pcinuma demo: stopped"


def test_a_host_that_is_killed_ends_the_other_one_too(running: Running) -> None:
    running.hosts[-1].kill()
    assert ended(running).startswith("pcinuma demo: QEMU was killed by signal 9")


def test_keep_without_a_terminal_is_refused_before_anything_boots() -> None:
    done = subprocess.run([*DEMO, "--keep"], cwd=CHECKOUT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PROMPT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "terminal" in done.stderr


@pytest.mark.parametrize("other", ["--json", "--quick"])
def test_keep_and_what_has_no_shell_do_not_go_together(other: str) -> None:
    done = subprocess.run([*DEMO, "--keep", other], cwd=CHECKOUT, capture_output=True, text=True, timeout=PROMPT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--keep goes with neither" in done.stderr


@pytest.mark.skipif(needs.namespaces() is not None, reason=str(needs.namespaces()))
def test_a_missing_program_is_named_with_what_installs_it(tmp_path: Path) -> None:
    hide = f"mount --bind {tmp_path} /usr/sbin && exec env PATH=/usr/bin {' '.join(DEMO)}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", hide], cwd=CHECKOUT, capture_output=True, text=True, timeout=PROMPT)
    assert (done.returncode, done.stdout) == (1, "")
    assert "libvirtd is not installed" in done.stderr
    assert "install.sh --demo" in done.stderr
