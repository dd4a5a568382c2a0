# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the commands draw with: trees, two trees side by side, colours and box characters only where they can be shown."""

from __future__ import annotations

import io

from pcinuma.show.progress import Progress
from pcinuma.show.screen import Row, Screen, locale_is_utf8, visible

PLAIN, FANCY = Screen(), Screen(colour=True, unicode=True)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_rows_with_the_same_beginning_share_it() -> None:
    rows = [Row(("node 0", "rc a", "x")), Row(("node 0", "rc b", "y")), Row(("node 0", "rc a", "z")), Row(("node 1",))]
    assert [line.text for line in Screen(unicode=True).tree(rows)] == [
        "node 0",
        "├─ rc a",
        "│  ├─ x",
        "│  └─ z",
        "└─ rc b",
        "   └─ y",
        "node 1",
    ]


def test_a_locale_without_utf8_gets_ascii() -> None:
    lines = [line.text for line in PLAIN.tree([Row(("root", "one", "two")), Row(("root", "three"))])]
    assert lines == ["root", "|- one", "|  `- two", "`- three"]


def test_what_follows_a_tab_begins_in_one_column_whatever_the_depth() -> None:
    lines = [line.text for line in PLAIN.tree([Row(("root", "a\tx")), Row(("root", "long name", "b\ty"))])]
    assert lines[1].index("x") == lines[3].index("y")


def test_the_same_key_stands_on_the_same_line_and_the_trees_stay_connected() -> None:
    left = Screen(unicode=True).tree([Row(("L", "p", "a"), "a"), Row(("L", "q", "b"), "b")])
    right = Screen(unicode=True).tree([Row(("R", "a"), "a"), Row(("R", "b"), "b")])
    assert [row.split() for row in Screen(unicode=True).beside(left, right)] == [
        ["L", "R"],
        ["├─", "p", "│"],
        ["│", "└─", "a", "┄┄", "├─", "a"],
        ["└─", "q", "│"],
        ["└─", "b", "┄┄", "└─", "b"],
    ]


def test_trees_in_another_order_lose_no_line_and_no_key() -> None:
    left = PLAIN.tree([Row(("L", name), name) for name in "abcd"])
    right = PLAIN.tree([Row(("R", name), name) for name in "cdab"])
    text = "\n".join(PLAIN.beside(left, right))
    assert all(text.count(f"- {name}") == 2 for name in "abcd")
    assert text.count(" .. ") == 2  # the longest common run: two devices face each other


def test_colours_appear_only_on_a_terminal_that_can_and_not_under_no_color() -> None:
    assert Screen.of(Terminal(), {"TERM": "xterm", "LANG": "C.UTF-8"}).colour
    assert not Screen.of(io.StringIO(), {"TERM": "xterm"}).colour
    assert not Screen.of(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}).colour
    assert not Screen.of(Terminal(), {"TERM": "dumb"}).colour
    assert not Screen.of(Terminal(), {}).colour


def test_colours_take_no_columns() -> None:
    assert visible(FANCY.paint("abc", "red", "bold")) == 3
    table = FANCY.table([(FANCY.paint("a", "red"), "x"), ("bb", "y")])
    assert [visible(line) for line in table] == [5, 5]


def test_python_turning_the_c_locale_into_utf8_is_not_taken_for_the_users_wish() -> None:
    assert locale_is_utf8({"LANG": "de_DE.UTF-8"})
    assert locale_is_utf8({"LANG": "C.utf8"})
    assert locale_is_utf8({"LC_ALL": "en_US.UTF-8", "LANG": "C"})
    assert locale_is_utf8({"LC_CTYPE": "en_US.UTF-8", "LANG": "C"})
    assert not locale_is_utf8({"LC_ALL": "C", "LANG": "en_US.UTF-8"})
    assert not locale_is_utf8({"LC_CTYPE": "C.UTF-8", "LANG": "C"})
    assert not locale_is_utf8({"LC_CTYPE": "C.UTF-8"})
    assert not locale_is_utf8({})


def test_progress_says_nothing_about_what_is_quick() -> None:
    stream = Terminal()
    with Progress("working", stream) as progress:
        progress.step("one")
    assert stream.getvalue() == ""
