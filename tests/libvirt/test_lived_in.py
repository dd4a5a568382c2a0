# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tests depend on nothing that the machine has or lacks: some of each kind run once more on one that somebody has used (``lived_in.sh``).

``sudo tests/lived_in.sh tests/run`` runs all of them so.
"""

from __future__ import annotations

import subprocess
import sys

from tests.libvirt.conftest import require
from tests.waiting import CHECKOUT

SOME = (
    "tests/libvirt/test_install_host.py::test_a_second_run_changes_nothing_and_leaves_libvirt_in_peace",
    "tests/libvirt/test_install_host.py::test_purging_restores_placed_domains_stops_the_daemon_and_leaves_no_file",
    "tests/libvirt/test_systemd.py::test_purging_leaves_no_unit_and_no_file",
    "tests/libvirt/test_hook.py::test_without_a_daemon_required_refuses_and_says_how_to_mend_it",
    "tests/libvirt/test_hook.py::test_required_refuses_with_a_sentence_that_virsh_shows",
    "tests/unit/cli/test_main.py",
    "tests/unit/show/test_screen.py",
    "tests/unit/test_manual.py",
    "tests/unit/lab/test_userland.py",
)


def test_tests_pass_where_another_pcinuma_hook_libvirt_and_user_are() -> None:
    require()
    # -E: whatever starts Python decides whether it hears PYTHONPATH; tests/run does not.
    command = [sys.executable, "-E", "-m", "pytest", "-q", "-p", "no:cacheprovider", *SOME]
    done = subprocess.run(["sh", "tests/lived_in.sh", *command], cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
