# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest whose emulator lost its timers is booted again, once; whatever else it says is for the judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcinuma.lab import initramfs, machine
from pcinuma.lab.kernel import Kernel
from tests import needs

STALLED = f"rcu: INFO: {machine.STALL} on CPUs/tasks:"


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in QEMU's place: run number N copies ``console-N`` to its console. Timers that stop cannot be had on demand."""
    needs.require(needs.program("busybox", "busybox-static"))
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f"""#!/bin/sh
        echo run >>{tmp_path}/runs
        for word in "$@"; do case $word in file:*) cp {tmp_path}/console-$(wc -l <{tmp_path}/runs) "${{word#file:}}" ;; esac; done
    """)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def boot(emulator: Path) -> str:
    scratch = emulator / "scratch"
    scratch.mkdir()
    nothing = Path("/dev/null")
    return machine.boot_tree(Kernel("6.1", nothing, nothing, nothing), [], scratch).console


def test_a_guest_that_lost_its_timers_is_booted_again(emulator: Path) -> None:
    (emulator / "console-1").write_text(STALLED)
    (emulator / "console-2").write_text(initramfs.END)
    with pytest.warns(UserWarning, match="booted again"):
        assert initramfs.END in boot(emulator)


def test_it_is_booted_again_only_once(emulator: Path) -> None:
    (emulator / "console-1").write_text(STALLED)
    (emulator / "console-2").write_text(STALLED)
    with pytest.warns(UserWarning, match="booted again"):
        assert initramfs.END not in boot(emulator)
    assert (emulator / "runs").read_text().split() == ["run", "run"]


@pytest.mark.parametrize("said", ["Kernel panic", f"{STALLED}\n{initramfs.END}"])
def test_every_other_guest_is_booted_once(emulator: Path, said: str) -> None:
    (emulator / "console-1").write_text(said)
    assert boot(emulator) == said
    assert (emulator / "runs").read_text().split() == ["run"]
