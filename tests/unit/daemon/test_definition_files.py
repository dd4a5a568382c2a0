# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel tells of files that are written as libvirt writes them, however fast and however late it is read."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from errno import EMFILE, ENOSPC
from pathlib import Path
from typing import Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pcinuma.daemon import definition_files
from pcinuma.daemon.debounce import CALM, PATIENCE, Debounce
from pcinuma.daemon.definition_files import DefinitionFiles
from pcinuma.daemon.file_watch import Fanotify, Inotify, Watch, Written, open_watch
from pcinuma.daemon.starts import SIGNS_ARE_LATE, Starts
from tests.waiting import until

UUIDS = [f"00000000-0000-0000-0000-{number:012}" for number in range(3)]


def definition(uuid: str, text: str) -> str:
    return f"<domain type='qemu'>\n  <name>vm</name>\n  <uuid>{uuid}</uuid>\n  <title>{text}</title>\n</domain>\n"


def rewrite(folder: Path, name: str, text: str) -> None:
    """virFileRewrite."""
    new = folder / f"{name}.xml.new"
    with new.open("w") as file:
        file.write(f"<!--\nWARNING: <uuid>not-this-one</uuid>\n  virsh edit {name}\n-->\n\n{text}")
        file.flush()
        os.fsync(file.fileno())
    new.rename(folder / f"{name}.xml")


def inotify() -> Watch:
    watch = open_watch()
    if isinstance(watch, Inotify):
        return watch
    watch.close()
    return Inotify(watch._libc)  # type: ignore[attr-defined]


def fanotify() -> Watch:
    watch = open_watch()
    if not isinstance(watch, Fanotify):
        watch.close()
        pytest.skip("this kernel or container makes no fanotify group")
    return watch


def let_go(files: DefinitionFiles) -> None:
    """Of what the event loop has opened: a user may have few groups and instances."""
    if files._watch is not None and files._watch.lossless:
        asyncio.get_running_loop().remove_reader(files._watch.fileno())
    files.close()


WRITES = st.lists(st.tuples(st.sampled_from(UUIDS), st.text("abc<>&", max_size=5)), min_size=1, max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(writes=WRITES)
def test_every_version_is_there_whole_and_in_order_though_later_ones_took_its_place(tmp_path: Path, writes: list[tuple[str, str]]) -> None:
    watch = fanotify()
    watch.mark(tmp_path)
    expected = [definition(uuid, text.replace("<", "").replace("&", "")) for uuid, text in writes]
    for (uuid, _), text in zip(writes, expected):
        rewrite(tmp_path, f"vm-{uuid[-1]}", text)
    found = [written.text.decode().partition("-->\n\n")[2] for written in watch.read() if written.text is not None]
    watch.close()
    assert found == expected


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(writes=WRITES)
def test_without_fanotify_a_version_that_is_missed_is_never_taken_for_another(tmp_path: Path, writes: list[tuple[str, str]]) -> None:
    """Read when all is over: of each domain, the last version is there, and of every other one it is known that there was one."""

    async def run() -> None:
        files = DefinitionFiles(lambda uuid: None, tmp_path)
        files._watch = inotify()
        files.watch()
        with files.follow(UUIDS[0], "vm-0") as followed:
            began = files.now()
            assert began is not None
            with files.lock:  # the thread that reads at once is kept from it
                for number, (uuid, _) in enumerate(writes):
                    rewrite(tmp_path, f"vm-{uuid[-1]}", definition(uuid, str(number)))
            files.now()
            mine = [number for number, (uuid, _) in enumerate(writes) if uuid == UUIDS[0]]
            found = followed.since(began)
            assert len(found) >= len(mine)
            if mine:
                last = found[-1].text
                assert last is not None
                assert last.decode() == definition(UUIDS[0], str(mine[-1]))
            assert all(version.text is None for version in found[:-1])
        let_go(files)

    asyncio.run(run())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(elsewhere=st.lists(st.booleans(), min_size=1, max_size=10))
def test_whichever_thread_reads_a_write_it_has_been_told_or_is_counted(tmp_path: Path, elsewhere: list[bool]) -> None:
    async def run() -> None:
        told: list[str | None] = []
        files = DefinitionFiles(told.append, tmp_path)
        files._watch = fanotify()
        files.watch()
        for number, by_thread in enumerate(elsewhere, 1):
            rewrite(tmp_path, "vm-0", definition(UUIDS[0], str(number)))
            if by_thread:
                thread = threading.Thread(target=files.now)
                thread.start()
                thread.join()
            else:
                files.now()
            assert len(told) + files.untold == number
        while files.untold:
            await asyncio.sleep(0)
        assert len(told) == len(elsewhere)
        let_go(files)

    asyncio.run(run())


@pytest.mark.parametrize("watch", [fanotify, inotify])
def test_only_what_is_followed_is_kept_and_everything_is_numbered(tmp_path: Path, watch: Callable[[], Watch]) -> None:
    async def run() -> None:
        told: list[str | None] = []
        files = DefinitionFiles(told.append, tmp_path)
        files._watch = watch()
        files.watch()
        rewrite(tmp_path, "vm-0", definition(UUIDS[0], "before"))
        first = files.now()
        assert first is not None
        assert files.last(UUIDS[0]) <= first
        with files.follow(UUIDS[1], "vm-1") as followed:
            for number in range(3):
                rewrite(tmp_path, "vm-0", definition(UUIDS[0], f"other {number}"))
                rewrite(tmp_path, "vm-1", definition(UUIDS[1], f"text {number}"))
                files.now()
            (tmp_path / "vm-1.xml.swp").write_text("an editor's")
            (tmp_path / "notes").write_text("no definition")
            files.now()
            assert [version.text for version in followed.since(first)] == [definition(UUIDS[1], f"text {n}").encode() for n in range(3)]
            assert followed.last() == followed.since(first)[-1].number > files.last(UUIDS[0]) > first
            assert followed.there()
            (tmp_path / "vm-1.xml").unlink()
            assert not followed.there()
        await asyncio.sleep(0.05)
        assert told.count(UUIDS[0]) == 4
        assert told.count(UUIDS[1]) == 3
        let_go(files)

    asyncio.run(run())


class Scripted:
    """A watch that tells what it is given."""

    kind, lossless = "scripted", False

    def __init__(self, written: list[Written]) -> None:
        self._written = written
        self._end, self._other_end = os.pipe()

    def fileno(self) -> int:
        return self._end

    def mark(self, folder: Path) -> None:
        pass

    def close(self) -> None:
        os.close(self._end)
        os.close(self._other_end)

    def read(self) -> Iterator[Written]:
        while self._written:
            yield self._written.pop(0)


@pytest.mark.parametrize("name", [None, "vm-1.xml"])
def test_a_write_that_was_missed_may_have_been_anybodys(tmp_path: Path, name: Optional[str]) -> None:
    """But for a domain that is followed, where the name says that it was another."""
    written: list[Written] = []
    files = DefinitionFiles(lambda uuid: None, tmp_path)
    files._watch = Scripted(written)
    files.watch()
    rewritten = Written("vm-0.xml", definition(UUIDS[0], "text").encode(), None)
    with files.follow(UUIDS[1], "vm-1") as one, files.follow(UUIDS[2], "vm-2") as other:
        written.append(rewritten)
        before = files.now()
        written.append(Written(name, None, None))
        after = files.now()
        assert before is not None and after is not None and after > before
        assert files.last(UUIDS[0]) == one.last() == files.last("somebody") == after
        assert [version.text for version in one.since(before)] == [None]
        assert other.last() == (after if name is None else files.last(UUIDS[2])) and bool(other.since(before)) is (name is None)
        assert name is None or other.last() < before
    files.close()


@pytest.mark.parametrize(("number", "advice"), [(EMFILE, "max_user_instances"), (ENOSPC, "max_user_watches"), (0, None)])
def test_what_cannot_be_watched_is_told_and_seen_by_the_folders_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: Optional[str]
) -> None:
    def refuse() -> Watch:
        raise OSError(number, "why not")

    files = DefinitionFiles(lambda uuid: None, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(definition_files, "open_watch", refuse)
        files.watch()
        assert files.kind is None and files.now() is None
        assert files.problem is not None and "(why not)" in files.problem
        assert ("sysctl" in files.problem) is (advice is not None) and (advice or "") in files.problem
        assert not files.watch_again()
        os.utime(tmp_path, (1, 1))
        assert files.watch_again() and not files.watch_again()
    assert files.watch_again() and not files.watch_again()
    assert files.kind is not None and files.problem is None
    files.close()


@pytest.mark.parametrize("watch", [fanotify, inotify])
def test_what_is_closed_holds_nothing_and_nobody_reads_it(tmp_path: Path, watch: Callable[[], Watch]) -> None:
    """A command leaves nothing of the few groups and instances behind that a user may have."""
    before, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    for _ in range(3):
        files = DefinitionFiles(lambda uuid: None, tmp_path)
        files._watch = watch()
        files.watch()
        rewrite(tmp_path, "vm-0", definition(UUIDS[0], "text"))
        assert files.now() is not None
        files.close()
        files.close()
        assert files.kind is None and files.now() is None
    until(lambda: set(threading.enumerate()) <= threads, "the threads to end")
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_folder_that_comes_later_or_anew_is_watched_from_then_on(tmp_path: Path) -> None:
    async def run() -> None:
        folder = tmp_path / "qemu"
        files = DefinitionFiles(lambda uuid: None, folder)
        files.watch()
        assert files.now() is None
        for _ in range(2):
            folder.mkdir()
            files.watch()
            began = files.now()
            assert began is not None
            rewrite(folder, "vm", definition(UUIDS[0], "text"))
            files.now()
            assert files.last(UUIDS[0]) > began
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
            files.watch()
        let_go(files)

    asyncio.run(run())


@given(gaps=st.lists(st.floats(0, 0.5), max_size=60))
def test_a_change_after_a_quiet_time_waits_for_nothing_and_no_burst_for_ever(gaps: list[float]) -> None:
    debounce, now, looked, began = Debounce(), 100.0, -1.0, 100.0
    for gap in [10.0, *gaps]:
        now += gap
        delay = debounce.delay(now)
        if gap > 0.2:
            assert delay == 0
        if delay == 0:
            looked = began = now
        assert delay == 0 or CALM <= delay <= 0.2
        assert now - began <= PATIENCE + 0.5
    assert looked > 0


def test_a_start_is_over_at_the_first_sign_of_it() -> None:
    async def run() -> None:
        over: list[tuple[str, bool]] = []
        active = {"asked": True}
        asked = threading.Event()

        async def is_active(uuid: str) -> bool:
            asked.set()
            return active[uuid]

        starts = Starts(lambda *told: over.append(told), is_active)
        for sign in (starts.is_over, starts.lock_was_free):
            starts.begins("vm", refused=False)
            assert "vm" in starts
            sign("vm")
            await asyncio.sleep(2 * SIGNS_ARE_LATE)
            assert "vm" not in starts
        assert over == [("vm", False), ("vm", False)]
        starts.begins("asked", refused=False)
        while not asked.is_set():
            await asyncio.sleep(0.01)
        assert "asked" in starts, "it is active: it goes on"
        active["asked"] = False
        while "asked" in starts:
            await asyncio.sleep(0.01)
        starts.begins("gone", refused=False)
        assert starts.forget("gone")
        assert over == [("vm", False), ("vm", False), ("asked", True)]
        starts.clear()

    asyncio.run(asyncio.wait_for(run(), 30))
