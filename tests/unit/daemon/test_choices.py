# SPDX-License-Identifier: LGPL-2.1-or-later
"""What people chose for domains outlives everything that can happen to the files: a disabled domain is never placed.

Each damage is done to a real folder, and the daemon's own steps follow: it reads the folder, is asked about domains, hears which there
are, and starts once more.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcinuma.daemon import choices
from pcinuma.daemon.permission import allowed
from pcinuma.daemon.state import FILE, Record, State, from_json, load, to_json
from pcinuma.daemon.state_file import StateFile
from pcinuma.errors import DaemonError
from pcinuma.settings import Adopt, Policy
from tests import needs
from tests.hosts.memory import MEMORY
from tests.waiting import CHECKOUT

OLD, ON, OFF, NEW = (f"0d1e7a3c-52f7-4b0e-9d2b-00000000000{n}" for n in range(4))
"""Domains that: existed before, were enabled, were disabled by a person, came later."""
ALL = frozenset({OLD, ON, OFF, NEW})
OWNERS = (None, Policy.PREFERRED, Policy.REQUIRED)


def good(folder: Path) -> Path:
    """A state folder as it is on a host that has been up for a while."""
    folder.mkdir(exist_ok=True)
    choices.establish(folder, [OLD, ON])
    choices.choose(folder, ON, enabled=True, name="on")
    choices.choose(folder, OFF, enabled=False, name="off")
    (folder / FILE).write_bytes(to_json({uuid: Record("vm") for uuid in ALL}))
    return folder


def version_1(folder: Path) -> bytes:
    """The same as an older pcinuma kept it."""
    records = json.loads(to_json({uuid: Record("vm") for uuid in ALL}))["domains"]
    content = {"version": 1, "existing": [OLD, ON], "enabled": [ON], "disabled": [OFF], "domains": records}
    return json.dumps(content, indent=1).encode()


def touched(state: State) -> set[str]:
    """The domains that would be placed if their owners ask for nothing."""
    return {uuid for uuid in ALL if allowed(state, Adopt.NEW, uuid, None)}


def may_ever_be_placed(state: State, uuid: str) -> bool:
    return any(allowed(state, Adopt.NEW, uuid, owner) for owner in OWNERS)


def lives(folder: Path) -> Iterator[tuple[str, State]]:
    """What the daemon knows when it has started, when libvirt told it of all domains, and when it was started again."""
    state = load(folder)
    yield "started", state
    asyncio.run(taking_stock(folder, state))
    yield "told", state
    yield "started again", load(folder)


async def taking_stock(folder: Path, state: State) -> None:
    await asyncio.wait_for(StateFile(folder, state).take_stock(ALL), 20)


def test_a_host_that_has_been_up_for_a_while_knows_who_is_who(tmp_path: Path) -> None:
    for _, state in lives(good(tmp_path / "state")):
        assert (touched(state), state.lost) == ({ON, NEW}, None)


def test_the_first_start_leaves_alone_what_there_is(tmp_path: Path) -> None:
    found = [(moment, touched(state), state.lost) for moment, state in lives(tmp_path)]
    assert found == [("started", set(), None), ("told", set(), None), ("started again", set(), None)]


def test_an_older_state_is_taken_over_once(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(version_1(tmp_path))
    for _, state in lives(tmp_path):
        assert (touched(state), state.lost) == ({ON, NEW}, None)
    choices.choose(tmp_path, OFF, enabled=True, name="off")
    asyncio.run(StateFile(tmp_path, state).written())
    assert json.loads((tmp_path / FILE).read_bytes())["version"] == 2
    assert touched(load(tmp_path)) == {ON, NEW, OFF}


def test_choices_made_with_an_older_pcinuma_in_between_are_the_newer_ones(tmp_path: Path) -> None:
    good(tmp_path)
    content = {**json.loads(version_1(tmp_path)), "existing": [], "enabled": [OFF], "disabled": [ON]}
    (tmp_path / FILE).write_text(json.dumps(content))
    for _, state in lives(tmp_path):
        assert touched(state) == {OFF, NEW}


def test_an_older_state_cut_off_at_any_byte_places_no_domain_that_was_disabled(tmp_path: Path) -> None:
    whole = version_1(tmp_path)
    for length in range(len(whole)):
        with pytest.raises(ValueError):
            from_json(whole[:length])
    for length in range(0, len(whole), 61):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / FILE).write_bytes(whole[:length])
        for moment, state in lives(folder):
            assert not may_ever_be_placed(state, OFF), (length, moment)
            assert not touched(state), (length, moment)
            assert state.lost and "pcinuma enable" in state.lost, (length, moment)
        shutil.rmtree(folder)


def test_a_file_cut_off_at_any_byte_takes_no_choice_along(tmp_path: Path) -> None:
    folder = good(tmp_path / "state")
    whole = (folder / FILE).read_bytes()
    for length in range(0, len(whole), 7):
        (folder / FILE).write_bytes(whole[:length])
        state = load(folder)
        assert (touched(state), state.lost) == ({ON, NEW}, None)


# Damage.


def _replace_by_file(path: Path) -> None:
    _remove(path)
    path.write_bytes(b"\0{garbage")


def _replace_by_folder(path: Path) -> None:
    _remove(path)
    path.mkdir()
    (path / "lost+found").mkdir()


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _dangling_link(path: Path) -> None:
    _remove(path)
    path.symlink_to("/nonexistent/state")


def _rubbish_in_every_file(path: Path) -> None:
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            file.write_bytes(b"\xff\0" * 40)


def _empty_every_file(path: Path) -> None:
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            file.write_bytes(b"")


def _files_of_others(path: Path) -> None:
    if path.is_dir():
        (path / "README~").write_text("")
        (path / OFF.upper()).write_text("")


def _newer(path: Path) -> None:
    if path.name == FILE:
        _remove(path)  # or a dangling link would be written through
        path.write_text('{"version": 3, "domains": {"%s": "placed"}}' % OFF)


DAMAGES: list[Callable[[Path], None]] = [
    _replace_by_folder,
    _replace_by_file,
    _remove,
    _dangling_link,
    _rubbish_in_every_file,
    _empty_every_file,
    _files_of_others,
    _newer,
]
ENTRIES = (choices.DISABLED, choices.ENABLED, choices.EXISTING, FILE, choices.LOST, "lock")


def hurt(folder: Path, damages: list[tuple[str, Callable[[Path], None]]]) -> None:
    for entry, damage in damages:
        damage(folder / entry)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
@pytest.mark.parametrize("entry", ENTRIES)
def test_one_damage_touches_no_disabled_domain_and_is_said_where_it_cost_something(
    tmp_path: Path, entry: str, damage: Callable[[Path], None]
) -> None:
    folder = good(tmp_path / "state")
    hurt(folder, [(entry, damage)])
    for moment, state in lives(folder):
        assert not may_ever_be_placed(state, OFF), moment
        assert touched(state) <= {ON, NEW}, moment
        if touched(state) != {ON, NEW} and (entry, damage) != (choices.EXISTING, _remove):  # which looks like a first start
            assert state.lost and str(folder / choices.LOST) in state.lost, moment
    _remove(folder / choices.LOST)
    assert load(folder).lost is None, "it complains until a person takes the file away"


FEW = settings(deadline=None, max_examples=30)  # each writes to the disk


@FEW
@given(st.lists(st.tuples(st.sampled_from(ENTRIES), st.sampled_from(DAMAGES)), min_size=2, max_size=4))
def test_several_damages_touch_no_disabled_domain(damages: list[tuple[str, Callable[[Path], None]]]) -> None:
    with scratch() as folder:
        good(folder)
        hurt(folder, damages)
        for moment, state in lives(folder):
            assert not may_ever_be_placed(state, OFF), moment
            assert touched(state) <= {ON, NEW}, moment


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


# What a person chose is on the disk, or it is refused.

ON_A_FULL_DISK = """
import asyncio, os, sys
from pathlib import Path
from pcinuma.daemon.state import load
from pcinuma.daemon.state_file import StateFile
from pcinuma.errors import DaemonError

folder, uuid = Path(sys.argv[1]), sys.argv[2]
state = load(folder)
with open(folder / "filler", "wb", buffering=0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError:
        pass

async def main():
    file = StateFile(folder, state)
    for enabled in (False, True):
        try:
            await file.choose(uuid, "vm", enabled=enabled)
        except DaemonError as error:
            print(error.sentence())
        again = load(folder)
        for known in (state, again):
            assert uuid not in known.enabled | known.disabled, known
    (folder / "filler").unlink()
    assert await file.choose(uuid, "vm", enabled=False)
    assert not await file.choose(uuid, "vm", enabled=False)
    assert uuid in load(folder).disabled

asyncio.run(main())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_choice_on_a_full_disk_is_refused_with_a_sentence_and_not_in_force(tmp_path: Path) -> None:
    needs.require(needs.namespaces())
    folder = tmp_path / "state"
    folder.mkdir()
    script = 'mount -t tmpfs -o size=128k tmpfs "$1" && shift && exec "$@"'
    python = [sys.executable, "-c", ON_A_FULL_DISK, str(folder), NEW]
    shown = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(folder), *python], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    said = [line for line in shown.stdout.splitlines() if "not disabled" in line or "not enabled" in line]
    assert len(said) == 2 and all("No space left" in line and "make room" in line for line in said), shown.stdout


def test_a_choice_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    folder = good(tmp_path / "state")
    _replace_by_file(folder / choices.DISABLED)
    state = load(folder)
    with pytest.raises(DaemonError, match="not disabled"):
        asyncio.run(StateFile(folder, state).choose(NEW, "vm", enabled=False))
    assert NEW not in state.disabled


@FEW
@given(st.lists(st.tuples(st.sampled_from(sorted(ALL)), st.booleans()), max_size=8))
def test_the_last_choice_for_each_domain_is_the_one_that_is_read(chosen: list[tuple[str, bool]]) -> None:
    with scratch() as folder:
        state = load(folder)

        async def choose() -> None:
            file = StateFile(folder, state)
            await file.take_stock([])
            for uuid, enabled in chosen:
                await file.choose(uuid, "vm", enabled=enabled)

        asyncio.run(choose())
        again = load(folder)
        last = dict(chosen)
        for known in (state, again):
            assert known.enabled == {uuid for uuid, enabled in last.items() if enabled}
            assert known.disabled == {uuid for uuid, enabled in last.items() if not enabled}


def test_what_is_no_uuid_names_no_file(tmp_path: Path) -> None:
    for name in ("../x", "", "a/b", OFF + "\n"):
        with pytest.raises(ValueError, match="UUID"):
            choices.choose(tmp_path, name, enabled=True, name="vm")
