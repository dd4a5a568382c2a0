# SPDX-License-Identifier: LGPL-2.1-or-later
"""The manual pages and the completion say what the command itself says."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pcinuma.cli import COMMANDS, _parser
from pcinuma.settings import _KEYS
from tests.waiting import CHECKOUT

PAGES = [CHECKOUT / "man/pcinuma.8", CHECKOUT / "man/pcinuma.conf.5"]


def options(parser: argparse.ArgumentParser) -> set[str]:
    """The long options of a command and of the commands below it."""
    found = set()
    for action in parser._actions:
        found |= {option for option in action.option_strings if option.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found |= options(below)
    return found


def command(name: str) -> argparse.ArgumentParser:
    (commands,) = (action for action in _parser(name)._actions if isinstance(action, argparse._SubParsersAction))
    parser: argparse.ArgumentParser = commands.choices[name]
    return parser


def rendered(page: Path) -> str:
    """A page as plain text, 200 columns wide, without a complaint from the formatter."""
    process = subprocess.run(
        ["groff", "-man", "-Tascii", "-P-cbou", "-rLL=200n", "-ww", str(page)], capture_output=True, text=True, check=True
    )
    assert process.stderr == ""
    return process.stdout


def complete(*words: str) -> list[str]:
    """What bash offers for the last of the words."""
    script = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _pcinuma; printf "%s\\n" "${COMPREPLY[@]}"'
    process = subprocess.run(
        ["bash", "-c", script, str(CHECKOUT / "completion/pcinuma.bash"), *words], capture_output=True, text=True, check=True
    )
    return process.stdout.split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_no_fault_and_its_sections(page: Path) -> None:
    text = rendered(page)
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"):
        assert f"\n{section}\n" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manual_shows_a_command_with_all_its_options(name: str) -> None:
    synopsis = re.search(rf"^ {{7}}pcinuma {name}\b.*", rendered(PAGES[0]), re.MULTILINE)
    assert synopsis, f"pcinuma(8) does not have {name}"
    assert set(re.findall(r"--[a-z-]+", synopsis.group(0))) == options(command(name)) - {"--help"}


def test_the_manual_has_every_setting_of_the_configuration() -> None:
    text = rendered(PAGES[1])
    for section, key in _KEYS:
        assert re.search(rf"^\[{section}\]$.*^ +{key} = ", text, re.MULTILINE | re.DOTALL), key


@pytest.mark.parametrize("name", COMMANDS)
def test_completion_offers_a_commands_options(name: str) -> None:
    assert set(complete("pcinuma", name, "--")) == options(command(name))


def test_completion_offers_the_commands() -> None:
    assert complete("pcinuma", "") == [*COMMANDS, "--help", "--version"]
    assert complete("pcinuma", "top") == ["topology"]


def test_completion_offers_values_where_there_are_few() -> None:
    assert complete("pcinuma", "place", "--group-by", "s") == ["switch"]
    assert complete("pcinuma", "place", "--policy", "") == ["preferred", "required"]
    assert complete("pcinuma", "policy", "guest", "re") == ["required"]
    assert complete("pcinuma", "policy", "guest", "--cells", "") == ["auto", "off", "default"]
    assert complete("pcinuma", "place", "--cells", "") == ["auto", "off"]
    assert complete("pcinuma", "cells", "guest", "--memory", "p") == ["preferred"]
    assert complete("pcinuma", "proxy", "") == ["enable", "disable", "status"]


ZSH = """
words=("$@") CURRENT=$#
_describe() { print -rl -- ${found%%:*}; }
_call_program() { shift; eval "$@"; }
compadd() { while [[ $1 == -* ]]; do option=$1; shift; done; [[ $option == -a ]] && print -rl -- ${(P)1} || print -rl -- "$@"; }
_arguments() { print -rl -- ${@%%\\[*}; }
_files() { print -r -- FILES; }
virsh() { print -l one two; }
pcinuma() { $PYTHON -m pcinuma "$@"; }
complete() { source completion/_pcinuma; }
complete
"""


def zsh(*words: str) -> list[str]:
    """What zsh offers for the last of the words; its own functions that say so are cut down to what they would offer."""
    environment = {**os.environ, "PYTHON": sys.executable}
    process = subprocess.run(
        ["zsh", "-f", "-c", ZSH, "zsh", *words], cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return process.stdout.split()


def test_zsh_offers_the_commands_and_their_options() -> None:
    assert zsh("pcinuma", "") == [*COMMANDS, "--help", "--version"]
    for name in ("place", "proxy", "topology"):
        assert set(zsh("pcinuma", name, "--")) == options(command(name))


def test_zsh_offers_values_and_domains() -> None:
    assert zsh("pcinuma", "place", "--group-by", "") == ["root-complex", "switch", "node"]
    assert zsh("pcinuma", "policy", "guest", "") == ["preferred", "required", "off", "default"]
    assert zsh("pcinuma", "policy", "") == ["one", "two"]
    assert zsh("pcinuma", "proxy", "") == ["enable", "disable", "status"]
    assert zsh("pcinuma", "place", "") == ["FILES"]
    assert zsh("pcinuma", "explain", "") == ["one", "two"]
