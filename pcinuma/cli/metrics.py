# SPDX-License-Identifier: LGPL-2.1-or-later
"""``pcinuma metrics``: what the daemon knows and counts, for Prometheus and what reads its formats.

The client library writes the text; this command alone wants it, so nothing else of pcinuma needs it. A domain is told by its name in the
label ``domain``, as the exporters for libvirt do, so that series of both can be joined. A daemon that does not run or does not answer is
a metric like any other (``pcinuma_up`` 0), since what is to raise an alarm must be written then too; a caller who may not ask is an error.

docs/metrics.md lists the metrics; a test holds it to this file.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional, Sequence

from pcinuma import __version__
from pcinuma.cli import textfile
from pcinuma.cli.backend import may_not_ask
from pcinuma.daemon import client
from pcinuma.errors import EXIT_DONE, DaemonError, PcinumaError
from pcinuma.printable import printable

NAME = "metrics"
HELP = "what the daemon knows and counts, as metrics for Prometheus"
EPILOG = """\
examples:
  pcinuma metrics
  pcinuma metrics --openmetrics
  pcinuma metrics --output /var/lib/prometheus/node-exporter/pcinuma.prom
  systemctl enable --now pcinuma-metrics.timer   # the same every minute

Needs Python's prometheus_client (Debian: python3-prometheus-client, Fedora: python3-prometheus_client). Where the daemon does not answer,
pcinuma_up is 0 and the rest is missing. docs/metrics.md has the list, and rules for alerts are in docs/pcinuma.rules.yml.
"""
PATIENCE = 10.0
"""Seconds for an answer of the daemon."""

Labels = Mapping[str, str]
Sample = tuple[Labels, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, metavar="FILE", help="replace FILE, for node_exporter's textfile collector")
    parser.add_argument("--openmetrics", action="store_true", help="OpenMetrics instead of Prometheus' text format")


def run(args: argparse.Namespace) -> int:
    exposition = _library("prometheus_client.openmetrics.exposition" if args.openmetrics else "prometheus_client.exposition")
    registry = _library("prometheus_client.core").CollectorRegistry()
    registry.register(_Collector(*_ask()))
    text: bytes = exposition.generate_latest(registry)
    if args.output is not None:
        textfile.replace(args.output, text)
    elif sys.stdout.isatty():
        print("\n".join(map(printable, text.decode().splitlines())))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(text)
    return EXIT_DONE


def _library(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        hint = "install python3-prometheus-client (Debian) or python3-prometheus_client (Fedora)"
        raise PcinumaError(f"prometheus_client, which writes metrics, cannot be used ({error})", hint=hint) from None


def _ask() -> tuple[Optional[Mapping[str, Any]], Optional[Mapping[str, Any]]]:
    """The answers to Status and Counters; None where the daemon gives none, which stderr then says. Raises DaemonError for a caller who may
    not ask."""
    try:
        return client.call("Status", timeout=PATIENCE), client.call("Counters", timeout=PATIENCE)
    except DaemonError as error:
        if may_not_ask(error):
            raise
        print(printable(f"pcinuma: {error.sentence()}"), file=sys.stderr)
        return None, None


class _Collector:
    """The families of metrics, in the order of docs/metrics.md."""

    def __init__(self, status: Optional[Mapping[str, Any]], counters: Optional[Mapping[str, Any]]) -> None:
        self._core = _library("prometheus_client.core")
        self._status = status
        self._counters = counters

    def collect(self) -> Iterator[Any]:
        status, counters = self._status, self._counters
        up = status is not None and counters is not None
        yield self._gauge("pcinuma_up", "Whether the daemon answers.", [({}, up)])
        if status is None or counters is None:
            return
        libvirt, domains = status["libvirt"], _by_name(status["domains"])
        build = {"version": str(status["version"]), "command_version": __version__}
        yield self._gauge("pcinuma_build_info", "The daemon's version, and that of the command.", [(build, 1)])
        started = datetime.fromisoformat(status["started"]).timestamp()
        yield self._gauge("pcinuma_start_time_seconds", "When the daemon started, in seconds since the epoch.", [({}, started)])
        yield self._gauge("pcinuma_libvirt_connected", "Whether the daemon is connected to libvirt.", [({}, libvirt["connected"])])
        connection = {"uri": libvirt["uri"], "version": libvirt["version"] or ""}
        yield self._gauge("pcinuma_libvirt_info", "What the daemon connects to, and the version that was there last.", [(connection, 1)])
        connections = counters["connections"]
        yield self._counter("pcinuma_libvirt_connections", "Connections to libvirt that were made.", [({}, connections)])
        yield self._gauge("pcinuma_pending_looks", "Looks at domains that are due or under way.", [({}, status["pending"])])
        yield self._gauge("pcinuma_problems", "Problems of the daemon itself, which pcinuma status tells.", [({}, len(status["problems"]))])
        yield self._gauge(
            "pcinuma_domain_outcome",
            "1 for what was last decided about a domain and why; the outcome is empty before the first decision.",
            [({"domain": name, "outcome": each["outcome"] or "", "reason": each["reason"] or ""}, 1) for name, each in domains],
        )
        yield self._gauge(
            "pcinuma_domain_devices",
            "Passthrough devices of a domain's definition: placed, or not placed for a reason.",
            [sample for name, each in domains for sample in _devices(name, each)],
        )
        enabled = [({"domain": name}, float(each["enabled"])) for name, each in domains]
        yield self._gauge("pcinuma_domain_enabled", "Whether pcinuma places a domain without being asked.", enabled)
        contended = [({"domain": name}, float(each["contended"])) for name, each in domains]
        yield self._gauge("pcinuma_domain_contended", "Whether another program keeps undoing a domain's placement.", contended)
        yield self._counter(
            "pcinuma_starts",
            "Starts of guests by what they were about to boot, who placed that, and how they ended.",
            [({key: start[key] for key in ("by", "layout", "result")}, start["count"]) for start in counters["starts"]],
        )
        yield self._histogram("pcinuma_hook_duration_seconds", "From a hook's question to the daemon's answer.", counters["hook"])
        yield self._histogram("pcinuma_reconcile_duration_seconds", "A look of the reconciler at a domain.", counters["reconcile"])

    def _gauge(self, name: str, documentation: str, samples: Sequence[Sample]) -> Any:
        return _filled(self._core.GaugeMetricFamily, name, documentation, samples)

    def _counter(self, name: str, documentation: str, samples: Sequence[Sample]) -> Any:
        return _filled(self._core.CounterMetricFamily, name, documentation, samples)

    def _histogram(self, name: str, documentation: str, histogram: Mapping[str, Any]) -> Any:
        bounds = [*map(str, map(float, histogram["bounds"])), "+Inf"]
        family = self._core.HistogramMetricFamily(name, documentation, labels=())
        family.add_metric((), list(zip(bounds, accumulate(histogram["counts"]))), histogram["sum"])
        return family


def _filled(kind: Any, name: str, documentation: str, samples: Sequence[Sample]) -> Any:
    labels = list(samples[0][0]) if samples else []
    family = kind(name, documentation, labels=labels)
    for values, value in samples:
        family.add_metric([_encodable(values[label]) for label in labels], float(value))
    return family


def _by_name(domains: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The domains by name: a collector takes nothing of a file in which a series is there twice. While libvirt is away a name may be that
    of two, one of which has just taken the other's place; that is the one decided about last."""
    found: dict[str, Mapping[str, Any]] = {}
    for domain in sorted(domains, key=lambda domain: (domain["when"] or "", domain["uuid"])):
        found[_encodable(domain["name"])] = domain
    return sorted(found.items())


def _devices(name: str, domain: Mapping[str, Any]) -> Iterator[Sample]:
    yield {"domain": name, "outcome": "placed", "reason": ""}, domain["placed"]
    for each in domain["unplaced"]:
        yield {"domain": name, "outcome": "unplaced", "reason": each["reason"] or ""}, each["devices"]


def _encodable(text: str) -> str:
    """Half a surrogate pair would keep everything else from being written."""
    return text.encode("utf-8", "backslashreplace").decode()
