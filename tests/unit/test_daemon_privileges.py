"""What the unit gives the daemon is used and given up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ONLY_SYS_ADMIN = ("setpriv", "--bounding-set", "-all,+sys_admin", "--inh-caps", "-all", "--no-new-privs")
PROGRAM = """
from pcinuma.daemon.file_watch import open_watch
from pcinuma.daemon.privileges import give_up
watch = open_watch()
import sys
from pathlib import Path
gave_up = give_up()
effective = [line for line in open("/proc/self/status") if line.startswith("CapEff")][0].split()[1]
marked = watch.mark(Path(sys.argv[1]))
Path(sys.argv[1], "vm.xml").write_text("text")
print(watch.kind, gave_up, int(effective, 16), marked, [written.text for written in watch.read()])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to give up")
def test_the_only_privilege_is_given_up_and_what_it_was_for_goes_on(tmp_path: Path) -> None:
    command = [*ONLY_SYS_ADMIN, "/usr/bin/python3", "-c", PROGRAM, str(tmp_path)]
    told = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    if told.startswith("inotify"):
        pytest.skip("this kernel or container makes no fanotify group")
    assert told == "fanotify True 0 True [b'text']\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to keep")
def test_root_that_a_person_started_it_as_keeps_what_it_has(tmp_path: Path) -> None:
    command = ["/usr/bin/python3", "-c", PROGRAM, str(tmp_path)]
    told = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert told.split()[1] == "False"
