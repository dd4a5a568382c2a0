# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line itself: help, wrong usage, errors in one line, and what a command does not load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pcinuma.cli import COMMANDS, main
from pcinuma.errors import EXIT_NEGATIVE, EXIT_UNUSABLE
from tests.hosts.machines import MACHINES
from tests.waiting import CHECKOUT

GOLDEN = CHECKOUT / "tests/golden"


def run_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process, from the checkout."""
    env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **environment}
    argv = [sys.executable, "-m", "pcinuma", *words]
    return subprocess.run(argv, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: pcinuma {command}" in text
    assert f"pcinuma {command}" in text.split("\n\n", 1)[1]


@pytest.mark.parametrize(
    "command", ["status", "plan", "apply", "revert", "enable", "disable", "policy", "verify", "explain", "topology", "check"]
)
def test_every_listing_has_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["status", "--all"],
        ["plan"],
        ["plan", "vm1", "--all"],
        ["apply", "--diff", "vm1"],
        ["revert", "vm1", "--replan"],
        ["topology", "--group-by", "node"],
        ["verify"],
        ["check", "--root", "/"],
        ["policy", "vm1", "sometimes"],
        ["detach", "vm1", "17:00.0", "--timeout", "-1"],
        ["plan", "--al"],
    ],
)
def test_what_a_command_does_not_support_is_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == EXIT_UNUSABLE
    assert capsys.readouterr().out == ""


def test_an_error_is_one_line_that_says_what_to_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCINUMA_SOCKET", "/nonexistent/pcinuma.sock")
    assert main(["status"]) == EXIT_NEGATIVE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("pcinuma: ")
    assert "systemctl start pcinuma" in captured.err


def test_input_that_is_no_domain_is_unusable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.xml").write_text("<network/>")
    assert main(["explain", str(tmp_path / "x.xml")]) == EXIT_UNUSABLE
    assert main(["topology", str(tmp_path / "missing.xml")]) == EXIT_UNUSABLE
    assert main(["topology", "--root", str(tmp_path)]) == EXIT_UNUSABLE
    assert "sys" in capsys.readouterr().err


def test_place_loads_neither_libvirt_nor_what_the_other_commands_need(tmp_path: Path) -> None:
    MACHINES["two-sockets"]().write(tmp_path)
    golden = GOLDEN / "two-nodes-in.xml"
    script = (
        "import sys; from pcinuma.cli import main; "
        f"code = main(['place', '--root', {str(tmp_path)!r}, {str(golden)!r}]); "
        "others = ('libvirt', 'psutil', 'socket', 'structlog', 'pcinuma.show.screen'); "
        "print(code, *[name for name in others if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert done.stderr == "0\n"
    assert done.stdout == (GOLDEN / "two-nodes-out.xml").read_text()


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    MACHINES["crowd"]().write(tmp_path)
    command = f"{sys.executable} -m pcinuma topology --json --root {tmp_path} | head -n 1"
    done = subprocess.run(["sh", "-c", command], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_a_pipe_gets_no_colours_and_a_c_locale_no_box_characters(tmp_path: Path) -> None:
    MACHINES["two-sockets"]().write(tmp_path)
    fancy = run_command("topology", "--root", str(tmp_path))
    plain = run_command("topology", "--root", str(tmp_path), LANG="C", LC_ALL="C")
    assert "├─" in fancy.stdout
    assert "\x1b" not in fancy.stdout
    assert plain.stdout.isascii()
    assert plain.stdout.count("\n") == fancy.stdout.count("\n")


def test_a_name_that_the_locale_cannot_write_does_not_stop_the_output(tmp_path: Path) -> None:
    MACHINES["two-sockets"]().write(tmp_path)
    xml = (GOLDEN / "two-nodes-out.xml").read_text().replace("<name>guest</name>", "<name>gäst</name>")
    (tmp_path / "x.xml").write_text(xml, encoding="utf-8")
    done = run_command("topology", str(tmp_path / "x.xml"), "--root", str(tmp_path), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr
    assert "g?st" in done.stdout


def test_text_and_json_of_explain_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MACHINES["two-sockets"]().write(tmp_path)
    words = ["explain", str(GOLDEN / "ambiguous-in.xml"), "--root", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    text = capsys.readouterr().out
    for device in data["devices"]:
        assert device["source"] in text
        assert device["guest_address"] is None or device["guest_address"] in text
        assert device["sentence"] is None or device["sentence"] in text
