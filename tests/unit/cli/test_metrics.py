# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma metrics``: what it says is what the daemon answered, whatever names are in that, and others can read it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcinuma.cli import main, metrics
from pcinuma.reason import Outcome, Reason
from tests import needs, promtool
from tests.unit.cli.answering import answering
from tests.unit.cli.test_foreign_text import IN_XML, assert_readable
from tests.waiting import CHECKOUT

RULES = CHECKOUT / "docs/pcinuma.rules.yml"
HISTOGRAM = {"bounds": [0.001, 0.5, 1.0], "counts": [3, 2, 0, 1], "sum": 4.25}
COUNTERS = {
    "hook": HISTOGRAM,
    "reconcile": {**HISTOGRAM, "counts": [0, 0, 0, 0], "sum": 0.0},
    "starts": [{"by": "proxy", "layout": "placed", "result": "running", "count": 7}],
    "connections": 2,
}


@pytest.fixture(autouse=True)
def library() -> None:
    needs.require(needs.module("prometheus_client"))


def domain(name: str, **values: Any) -> dict[str, Any]:
    """What Status says of a domain."""
    usual = {"name": name, "uuid": f"u {name!r}", "state": "running", "policy": "preferred", "enabled": True, "contended": False}
    decided = {"outcome": "placed", "reason": None, "message": None, "devices": 3, "placed": 3, "unplaced": []}
    return {**usual, **decided, "when": "2026", "by": "hook", **values}


def status(*domains: Mapping[str, Any]) -> dict[str, Any]:
    libvirt = {"connected": True, "uri": "qemu:///system", "version": "9.0.0", "since": "2026", "message": None}
    started = "2026-11-26T05:00:00+00:00"
    return {"version": "0.1.0", "libvirt": libvirt, "started": started, "pending": 1, "problems": ["x"], "domains": list(domains)}


def text(answer: Mapping[str, Any], openmetrics: bool = False) -> bytes:
    """What is written of an answer to Status."""
    exposition = metrics._library("prometheus_client.openmetrics.exposition" if openmetrics else "prometheus_client.exposition")
    registry = metrics._library("prometheus_client.core").CollectorRegistry()
    registry.register(metrics._Collector(answer, COUNTERS))
    written: bytes = exposition.generate_latest(registry)
    return written


def samples(written: bytes, openmetrics: bool = False) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Name and labels -> value, by the library's own parser; each series once."""
    parser = metrics._library("prometheus_client.openmetrics.parser" if openmetrics else "prometheus_client.parser")
    found = [sample for family in parser.text_string_to_metric_families(written.decode()) for sample in family.samples]
    values = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in found}
    assert len(values) == len(found)
    return values


EVERY = [
    domain(f"{outcome} {reason}", outcome=outcome, reason=reason, placed=1, unplaced=[{"reason": reason, "devices": 2}])
    for outcome, reason in product(["", *(outcome.value for outcome in Outcome)], [None, *(reason.value for reason in Reason)])
]


@pytest.mark.parametrize("openmetrics", [False, True], ids=["text", "openmetrics"])
def test_every_outcome_and_reason_of_domains_and_devices_is_there(openmetrics: bool) -> None:
    found = samples(text(status(*EVERY), openmetrics), openmetrics)
    for each in EVERY:
        name, reason = ("domain", each["name"]), ("reason", each["reason"] or "")
        assert found["pcinuma_domain_outcome", (name, ("outcome", each["outcome"]), reason)] == 1
        assert found["pcinuma_domain_devices", (name, ("outcome", "placed"), ("reason", ""))] == 1
        assert found["pcinuma_domain_devices", (name, ("outcome", "unplaced"), reason)] == 2
    started = (("by", "proxy"), ("layout", "placed"), ("result", "running"))
    assert found["pcinuma_starts_total", started] == 7
    buckets = [found["pcinuma_hook_duration_seconds_bucket", (("le", le),)] for le in ("0.001", "0.5", "1.0", "+Inf")]
    assert buckets == [3, 5, 5, 6]
    assert (found["pcinuma_hook_duration_seconds_count", ()], found["pcinuma_hook_duration_seconds_sum", ()]) == (6, 4.25)
    assert (found["pcinuma_libvirt_connected", ()], found["pcinuma_libvirt_connections_total", ()]) == (1, 2)
    assert found["pcinuma_start_time_seconds", ()] == 1795669200


@pytest.mark.parametrize("answer", [status(), status(*EVERY), status(domain(f'"\\n\\{IN_XML}'))], ids=["none", "all", "odd"])
def test_promtool_finds_nothing(answer: Mapping[str, Any]) -> None:
    judged = promtool.run("check", "metrics", given=text(answer).decode())
    assert (judged.returncode, judged.stdout, judged.stderr) == (0, "", "")


NAMES = st.text(st.characters(blacklist_categories=()), min_size=1, max_size=8)


@given(st.lists(NAMES, max_size=6), st.booleans())
def test_a_name_is_a_label_as_it_is_and_no_series_is_there_twice(names: list[str], openmetrics: bool) -> None:
    """Two domains of a name: the one that was decided about last."""
    domains = [domain(name, uuid=str(number), when=f"{number:04}", devices=number, placed=number) for number, name in enumerate(names)]
    found = samples(text(status(*reversed(domains)), openmetrics), openmetrics)
    seen = {dict(labels)["domain"]: value for (name, labels), value in found.items() if name == "pcinuma_domain_devices"}
    assert seen == {name.encode("utf-8", "backslashreplace").decode(): number for number, name in enumerate(names)}


def test_the_documentation_has_every_metric_with_its_labels_and_no_other() -> None:
    found: dict[str, set[str]] = {}
    for name, labels in samples(text(status(domain("vm")))):
        found.setdefault(re.sub("_(bucket|count|sum)$", "", name), set()).update(label for label, _ in labels if label != "le")
    rows = re.findall(r"(?m)^\| `(pcinuma_\w+)` \| ([^|]*)\|", (CHECKOUT / "docs/metrics.md").read_text())
    assert {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows} == found
    named = set(re.findall(r"pcinuma_\w+", RULES.read_text()))
    assert named <= found.keys()


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "socket"
    monkeypatch.setenv("PCINUMA_SOCKET", str(path))
    monkeypatch.setattr(metrics, "PATIENCE", 600.0)  # no busy machine decides
    return path


DENIED = {"error": "org.varlink.service.PermissionDenied"}
ILL = {"Status": status(), "Counters": {"error": "io.pcinuma.Error", "message": "odd"}}


def test_without_a_daemon_that_is_what_the_metrics_say(listening: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["metrics"]) == 0
    out, err = capsysbinary.readouterr()
    assert samples(out) == {("pcinuma_up", ()): 0}
    assert err.startswith(b"pcinuma: ") and b"systemctl start pcinuma" in err and err.count(b"\n") == 1


@pytest.mark.parametrize("answers", [None, ILL], ids=["hung", "ill"])
def test_a_daemon_that_does_not_answer_is_down_in_a_file_too(
    answers: Any, listening: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if answers is None:
        monkeypatch.setattr(metrics, "PATIENCE", 0.2)
    file = tmp_path / "pcinuma.prom"
    with answering(listening, answers):
        assert main(["metrics", "--output", str(file)]) == 0
    assert samples(file.read_bytes()) == {("pcinuma_up", ()): 0}
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("pcinuma: ") and captured.err.count("\n") == 1


def test_who_may_not_ask_writes_nothing(listening: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(listening, {"Status": DENIED}):
        assert main(["metrics", "--output", str(tmp_path / "pcinuma.prom")]) == 1
    assert "use sudo" in capsys.readouterr().err
    assert not (tmp_path / "pcinuma.prom").exists()


def test_without_the_library_it_says_what_to_install(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("prometheus_client")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["metrics"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "python3-prometheus-client" in captured.err


def test_a_name_does_nothing_to_a_terminal(listening: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with answering(listening, {"Status": status(domain(f"vm\x1b[2J{IN_XML}")), "Counters": COUNTERS}):
        assert main(["metrics"]) == 0
    out = capsys.readouterr().out
    assert 'pcinuma_domain_enabled{domain="vm' in out
    assert_readable(out)


# Alerts.


def series(answers: Mapping[str, str]) -> Iterator[dict[str, str]]:
    for each, values in answers.items():
        yield {"series": each, "values": values}


def at_work(**values: str) -> dict[str, str]:
    """A host on which all is well, but for ``values``, over forty minutes."""
    usual = {"up": "1x40", "libvirt_connected": "1x40"}
    found = {f'pcinuma_{name}{{instance="a"}}': values.pop(name, usual[name]) for name in usual}
    file = "/var/lib/prometheus/node-exporter/pcinuma.prom"
    found[f'node_textfile_mtime_seconds{{instance="a",file="{file}"}}'] = values.pop("mtime", "0+60x40")
    assert not values
    return found


def guest(
    outcome: str, reason: str, devices: str, *, enabled: str = "1x40", contended: str = "0x40", unplaced: str = "2x40"
) -> dict[str, str]:
    """The series of a domain: its outcome and reason, and the reason of two devices that are not placed."""
    labels = 'instance="a",domain="vm"'
    return {
        **at_work(),
        f'pcinuma_domain_outcome{{{labels},outcome="{outcome}",reason="{reason}"}}': "1x40",
        f'pcinuma_domain_devices{{{labels},outcome="placed",reason=""}}': "1x40",
        f'pcinuma_domain_devices{{{labels},outcome="unplaced",reason="{devices}"}}': unplaced,
        f"pcinuma_domain_enabled{{{labels}}}": enabled,
        f"pcinuma_domain_contended{{{labels}}}": contended,
    }


def starts(layout: str, result: str, values: str) -> dict[str, str]:
    return {**at_work(), f'pcinuma_starts_total{{instance="a",by="nobody",layout="{layout}",result="{result}"}}': values}


ALERTS: list[tuple[str, dict[str, str], set[str]]] = [
    ("all is well", at_work(), set()),
    ("the daemon is down", at_work(up="0x40"), {"PcinumaNotAtWork"}),
    ("libvirt is down", at_work(libvirt_connected="0x40"), {"PcinumaNotAtWork"}),
    ("the file is old", at_work(mtime="0x40"), {"PcinumaNotAtWork"}),
    ("libvirt was restarted", at_work(libvirt_connected="1x36 0 0 0"), set()),
    ("no cell", guest("unchanged", "no-cells", "no-cells"), {"PcinumaDomainUnplaced"}),
    ("no room for one", guest("placed", "", "no-room"), {"PcinumaDomainUnplaced"}),
    ("nobody knows why", guest("fallback", "", ""), {"PcinumaDomainUnplaced"}),
    ("a placement that stands", guest("fallback", "host-unreadable", "", unplaced="0x40"), {"PcinumaDomainUnplaced"}),
    ("contended", guest("unchanged", "contended", "", contended="1x40", unplaced="0x40"), {"PcinumaDomainUnplaced"}),
    ("for a moment", guest("unchanged", "", "no-cell", unplaced="0x30 2x10"), set()),
    ("disabled", guest("unchanged", "not-enabled", "no-cell"), set()),
    ("disabled, and not looked at since", guest("unchanged", "no-cells", "no-cells", enabled="0x40"), set()),
    ("off", guest("unchanged", "policy-off", "no-cell"), set()),
    ("somebody else's", guest("unchanged", "foreign-expander", "foreign-expander"), set()),
    ("nowhere to go", guest("placed", "", "no-affinity"), set()),
    ("kept", guest("placed", "", "kept"), set()),
    ("started unplaced", starts("unplaced", "running", "0x20 1x20"), {"PcinumaStartedUnplaced"}),
    ("started placed", starts("placed", "running", "0x20 1x20"), set()),
    ("refused", starts("unplaced", "refused", "0x20 1x20"), set()),
    ("started unplaced long ago", starts("unplaced", "running", "1x40"), set()),
]


def test_promtool_takes_the_rules() -> None:
    judged = promtool.run("check", "rules", str(RULES))
    assert judged.returncode == 0 and "3 rules found" in judged.stdout, judged.stdout + judged.stderr


def test_each_alert_is_raised_when_it_should_be_and_not_else(tmp_path: Path) -> None:
    names = re.findall(r"- alert: (\w+)", RULES.read_text())
    assert set(names) == {name for _, _, raised in ALERTS for name in raised}
    tests = [
        {
            "interval": "1m",
            "input_series": list(series({name.replace('instance="a"', f'instance="{what}"'): values for name, values in answers.items()})),
            "promql_expr_test": [
                {
                    "expr": f'count by (instance) (ALERTS{{alertname="{name}",alertstate="firing"}})',
                    "eval_time": "39m",
                    "exp_samples": [{"labels": f'{{instance="{what}"}}', "value": 1}] if name in raised else [],
                }
                for name in names
            ],
        }
        for what, answers, raised in ALERTS
    ]
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    judged = promtool.run("test", "rules", str(file))
    assert judged.returncode == 0, judged.stdout + judged.stderr
