# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lock on the state folder: a daemon that starts waits for a command that is at work, and is refused while another daemon lives."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import libvirt
import pytest

from pcinuma.daemon import lock
from pcinuma.daemon.definition import although_disabled
from pcinuma.errors import DaemonError, DomainError, LibvirtError


def test_who_comes_while_a_command_is_at_work_waits_for_it(tmp_path: Path) -> None:
    held, done = lock.take(tmp_path / "state", "hint"), []
    leave = threading.Timer(0.3, lambda: (done.append("through"), os.close(held)))
    leave.start()
    os.close(lock.take(tmp_path / "state", "hint"))
    assert done == ["through"]
    leave.join()


def test_who_stays_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    held = lock.take(tmp_path, "hint")
    with pytest.raises(DaemonError, match="another pcinumad is running; stop it"):
        lock.take(tmp_path, "stop it")
    os.close(held)
    os.close(lock.take(tmp_path, "hint"))


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DaemonError, match="the state folder cannot be used"):
        lock.take(tmp_path / "file", "hint")


@pytest.mark.parametrize("error", [libvirt.libvirtError("refused"), DomainError("refused", hint="mend it")])
def test_a_revert_that_fails_after_all_says_that_the_domain_is_disabled(error: Exception) -> None:
    with pytest.raises(LibvirtError) as told, although_disabled("vm1"):
        raise error
    assert str(told.value).startswith("vm1: disabled, but its definition still is as it was placed: ")
    assert "refused" in str(told.value)
