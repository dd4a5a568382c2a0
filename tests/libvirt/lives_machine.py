# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lives of domains as a state machine of hypothesis: what owners, administrators, hosts and accidents do to them, step by step.

After every step the machine waits until the daemon has dealt with it (``pending`` of its Status) and holds each definition against what
libvirt alone would have made of the owner's deeds (:meth:`World.alone`), the host as it is now, and what people decided. A failure tells
the whole life, a line a step, with the lines of XML that differ; the blob that hypothesis prints runs the same steps again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Optional

import libvirt
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from pcinuma import engine
from tests.hosts.passthrough import ours, passed, placement
from tests.libvirt.lives_checks import (
    Home,
    absent,
    difference,
    foreign_device_faults,
    homes,
    kept,
    metadata_attribute,
    movement_faults,
    placeable,
    placed,
    placement_faults,
    same,
    shape,
    status_faults,
    undo_faults,
)
from tests.libvirt.lives_domains import (
    CARDS,
    DEVICES,
    EDITS,
    KINDS,
    MDEV,
    Deed,
    Hardware,
    add,
    attach,
    define,
    detach,
    edit,
    keep,
    named,
    owner_sets,
    rename,
    take_out,
    written,
)
from tests.libvirt.lives_world import Said, World
from tests.waiting import until

MOST = 3
NAMES = ("vm1", "vm2", "vm3", "vm4")
RESTARTS = 4
LOG = 30
"""Lines of it that a failure tells."""
CONTENDED, WITHIN = 5, 60.0
"""How often within how many seconds an owner has undone our work before he is left alone."""
SETTINGS = {
    "policy": ("preferred", "required", "off"),
    "group-by": ("root-complex", "switch", "node"),
    "spare-ports": ("0", "2"),
    "adopt": ("new", "none"),
}


@dataclass
class Life:
    """A domain. ``file``: what its owner defined it from; ``xml``: the definition after the last step; ``owners``: what it would be without
    us, and ``exact`` unless devices came or went since we placed it; ``homes``: where its devices belonged when they were last dealt with.

    What the step at hand did to it: ``before``, the definition as the owner left it (None: he did nothing), and ``certain`` unless we may
    have placed it in between; ``asked``: a person asked for its placement, for one ``afresh`` or for none (``reverted``).
    """

    name: str
    uuid: str
    file: str
    xml: str = ""
    owners: str = ""
    exact: bool = True
    homes: dict[str, Home] = field(default_factory=dict)
    saved: bool = False
    running: bool = False
    undone: list[float] = field(default_factory=list)
    before: Optional[str] = None
    certain: bool = True
    asked: bool = False
    afresh: bool = False
    reverted: bool = False


class Lives(RuleBasedStateMachine):
    """The machine; ``world`` is to be set in a subclass."""

    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.story: list[str] = []
        self.lives: list[Life] = []
        self.decided: dict[str, bool] = {}
        self.existing: set[str] = set()
        self.settings: dict[str, str] = {}
        self.restarts = RESTARTS  # what a life has left of them: they take most of the time, and one says as much as five
        self.only_looked = False  # whether the daemon has looked at everything, and nobody did anything

    # How a life begins and ends.

    @initialize(
        kinds=st.lists(st.sampled_from(KINDS), max_size=2),
        sources=st.lists(st.sampled_from(DEVICES), unique=True, max_size=6),
        proxy=st.booleans(),
    )
    def before_pcinuma(self, kinds: list[str], sources: list[str], proxy: bool) -> None:
        """Whether owners go through the proxy; and domains that were there before the daemon's first start."""
        self.world.through(proxy=proxy)
        self.tell(f"owners talk to {'the proxy' if proxy else 'libvirt'}")
        if len(kinds) < 2:
            return  # most lives begin with pcinuma there
        self.tell(f"before pcinuma is started for the first time: {', '.join(kinds)}")
        self.world.forget_everything()
        for kind in kinds:
            self._define(self._free_name(), kind, sources, extras=True)
        self._observe()
        self.existing = {life.uuid for life in self.lives}
        self.world.start_daemon()
        self._observe()

    def teardown(self) -> None:
        """Leave the world as it was."""
        world = self.world
        world.through(proxy=False)
        if not world.watched:
            world.start_daemon()
        for domain in world.connection.listAllDomains(0):
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
        world.configure("")
        world.hardware = Hardware()
        world.rebuild()
        world.sweep()
        until(lambda: not world.daemon.call("Status")["domains"], "pcinumad to forget the domains")
        world.complaints()

    @precondition(lambda self: len(self.lives) < MOST)
    @rule(
        kind=st.sampled_from(KINDS),
        sources=st.lists(st.sampled_from(DEVICES), unique=True, max_size=6),
        extras=st.booleans(),
        policy=st.sampled_from([None, None, None, "preferred", "required", "off"]),
    )
    def a_new_domain(self, kind: str, sources: list[str], extras: bool, policy: Optional[str]) -> None:
        self._define(self._free_name(), kind, sources, extras=extras, policy=policy)
        self._observe()

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, MOST - 1), again=st.sampled_from(["no", "the same uuid", "a new uuid"]))
    def undefine(self, which: int, again: str) -> None:
        life = self._life(which)
        self.tell(f"{life.name} is undefined" + (f", and defined again from the owner's file with {again}" if again != "no" else ""))
        self._shut(life)
        self.world.connection.lookupByName(life.name).undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
        self.lives.remove(life)
        if again == "no":
            if self.world.watched:
                until(lambda: self.world.daemon.status(life.name) is None, "pcinumad to forget it")
        else:
            new = life.uuid if again == "the same uuid" else str(uuid.uuid4())
            fresh = Life(life.name, new, life.file.replace(life.uuid, new))
            self.lives.append(fresh)
            self._deeds(fresh, define(fresh.file))
        self._observe()

    @precondition(lambda self: any(not life.running and not life.saved for life in self.lives))
    @rule(which=st.integers(0, MOST - 1))
    def a_new_name(self, which: int) -> None:
        life = self._life(which)
        if life.running or life.saved:
            return
        old, new = life.name, self._free_name()
        self.tell(f"{old} is renamed to {new}")
        self._deeds(life, rename(new))
        life.name = new
        life.file = life.file.replace(f"<name>{old}</name>", f"<name>{new}</name>")
        if self.world.watched:
            until(lambda: self.world.daemon.status(new), "pcinumad to know the new name")
        self._observe()

    # What owners do.

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, MOST - 1))
    def define_from_his_file(self, which: int) -> None:
        life = self._life(which)
        self.tell(f"{life.name} is defined again from its owner's file")
        self._deeds(life, define(life.file))
        self._observe()

    @precondition(lambda self: self.lives)
    @rule(
        which=st.integers(0, MOST - 1),
        names=st.lists(st.sampled_from(sorted(EDITS)), min_size=0, max_size=2, unique=True),
        more=st.lists(st.sampled_from(DEVICES), max_size=2, unique=True),
        less=st.lists(st.integers(0, 7), max_size=2, unique=True),
    )
    def virsh_edit(self, which: int, names: list[str], more: list[str], less: list[int]) -> None:
        life = self._life(which)
        has = self._has(life)
        more = [source for source in more if source not in has]
        less_ = sorted({has[number % len(has)] for number in less}) if has else []
        self.tell(f"virsh edit {life.name}: {', '.join([*names, *('+' + s for s in more), *('-' + s for s in less_)]) or 'nothing'}")
        edits = [*(EDITS[name] for name in names), *map(take_out, less_), *map(add, more)]
        self._deeds(life, edit(*edits), devices=bool(edits))
        self._observe()

    @precondition(lambda self: self.lives)
    @rule(
        which=st.integers(0, MOST - 1),
        more=st.lists(st.sampled_from(DEVICES), max_size=3, unique=True),
        less=st.lists(st.integers(0, 7), max_size=3, unique=True),
    )
    def attach_and_detach(self, which: int, more: list[str], less: list[int]) -> None:
        """One after the other without a pause: beside a daemon that places what is there meanwhile."""
        life = self._life(which)
        has = self._has(life)
        more = [source for source in more if source not in has]
        less_ = sorted({has[number % len(has)] for number in less}) if has else []
        self.tell(f"{life.name}: virsh detach-device --config {' '.join(less_) or '-'}, attach-device --config {' '.join(more) or '-'}")
        self._deeds(life, *map(detach, less_), *map(attach, more), devices=True)
        self._observe()

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, MOST - 1), number=st.integers(0, 7), on=st.booleans())
    def keep_a_device(self, which: int, number: int, on: bool) -> None:
        life = self._life(which)
        has = self._has(life)
        if has:
            source = named(has[number % len(has)])
            self.tell(f"{life.name}: virsh metadata: <keep device='{source}'/> {'written' if on else 'taken out'}")
            self._deeds(life, keep(source, on), devices=True)
            self._observe()

    @precondition(lambda self: self.lives)
    @rule(
        which=st.integers(0, MOST - 1),
        policy=st.sampled_from(["preferred", "required", "off", "default"]),
        group_by=st.sampled_from([None, None, "switch", "root-complex", "node", "default"]),
    )
    def policy(self, which: int, policy: str, group_by: Optional[str]) -> None:
        life = self._life(which)
        words = ["policy", life.name, policy, *(["--group-by", group_by] if group_by else [])]
        self._expect(life, owner_sets(policy, group_by), devices=False)
        self.ask(*words)
        self._observe()

    # What people decide.

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, MOST - 1), killed=st.booleans())
    def enable(self, which: int, killed: bool) -> None:
        life = self._life(which)
        self.ask("enable", life.name, "--json", codes=(0, 1))
        life.asked = True
        self._decided(life, True, killed)
        self._observe()

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, MOST - 1), revert=st.booleans(), killed=st.booleans())
    def disable(self, which: int, revert: bool, killed: bool) -> None:
        """With a revert both or neither."""
        life = self._life(which)
        refused = revert and life.saved and bool(ours(life.xml.encode()))
        self.ask("disable", life.name, *(["--revert"] if revert else []), "--json", codes=(1,) if refused else (0,))
        if not refused:
            life.reverted = revert
            self._decided(life, False, killed)
        self._observe()

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, MOST - 1), killed=st.booleans())
    def revert(self, which: int, killed: bool) -> None:
        """Of what is placed; what is not has nothing to revert, and nothing is decided about it."""
        life = self._life(which)
        was = bool(ours(life.xml.encode()))
        refused = was and life.saved
        said = self.ask("revert", life.name, "--json", codes=(1,) if refused else (0,))
        if not refused:
            changed = said.json()["domains"][0]["changed"]
            if changed != was:
                self._fail(life, [f"revert said changed: {changed}, and the domain was {'' if was else 'not '}placed"])
            life.reverted = True
        if was and not refused:
            self._decided(life, False, killed)
        self._observe()

    def _decided(self, life: Life, enabled: bool, killed: bool) -> None:
        """From now on for ever. ``killed``: and the daemon is killed as soon as the command has said so."""
        self.decided[life.uuid] = enabled
        if killed and self.restarts and self.world.watched:
            self.tell("  and at once SIGKILL to the daemon, which is started again")
            self.restarts -= 1
            self.world.stop_daemon(9)
            self.world.start_daemon()

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, MOST - 1), replan=st.booleans())
    def plan_and_apply(self, which: int, replan: bool) -> None:
        """What the plan said is what is done; not to a domain with a saved state."""
        life = self._life(which)
        options = ["--replan"] if replan else []
        plan = self.ask("plan", life.name, *options, "--json").json()["domains"][0]
        refused = plan["changed"] and life.saved
        applied = self.ask("apply", life.name, *options, "--json", codes=(1,) if refused else (0, 1))
        if not refused:
            if not applied.out:
                self._fail(life, [f"apply failed: {applied.err}"])
            done = applied.json()["domains"][0]
            if not life.running and _foreseen(done, plan) != _foreseen(plan, plan):
                self._fail(life, [f"apply did not do what plan said:\nplan  {plan}\napply {done}"])
            at = {d.source: str(d.at) if d.at else None for d in passed(self.world.definition(life.name).encode())}
            said = {line["source"]: line["guest_address"] for line in done["report"]["devices"]}
            if at != said:
                self._fail(life, [f"apply said {said}, the definition says {at}"])
        life.asked, life.afresh = True, replan
        if replan and not life.saved:
            again = self.ask("plan", life.name, "--replan", "--json").json()["domains"][0]
            if again["changed"]:
                self._fail(life, [f"laid out afresh, and a fresh layout would be another: {again}"])
        self._observe()

    @precondition(lambda self: self.lives)
    @rule()
    def apply_all(self) -> None:
        """Every domain that is enabled."""
        self.ask("apply", "--all", "--json", codes=(0, 1))
        for life in self.lives:
            life.asked = life.asked or self.allowed(life)
        self._observe()

    # What happens around them.

    @precondition(lambda self: self.world.watched)
    @rule(card=st.sampled_from(CARDS), what=st.sampled_from(["another node", "no node", "its own node", "gone", "back"]))
    def the_host_changes(self, card: str, what: str) -> None:
        hardware = self.world.hardware
        own = 0 if card < "0000:b0" else 1
        if what == "gone":
            hardware.gone.add(card)
        elif what == "back":
            hardware.gone.discard(card)
        else:
            hardware.nodes[card] = {"another node": 1 - own, "no node": -1, "its own node": own}[what]
        self._host_is_now(f"the card {card}: {what}")

    @precondition(lambda self: self.world.watched)
    @rule(active=st.booleans())
    def the_mdev(self, active: bool) -> None:
        self.world.hardware.mdev = active
        self._host_is_now(f"the mdev {MDEV} is {'active' if active else 'inactive'}")

    def _host_is_now(self, words: str) -> None:
        self.tell(f"{words}; the daemon looks at all domains")
        self.world.rebuild()
        self.world.sweep()
        self._observe()

    @precondition(lambda self: self.world.watched)
    @rule(setting=st.sampled_from(sorted(SETTINGS)), number=st.integers(0, 2))
    def the_configuration_changes(self, setting: str, number: int) -> None:
        value = SETTINGS[setting][number % len(SETTINGS[setting])]
        self.settings[setting] = value
        parts: dict[str, list[str]] = {"placement": [], "daemon": []}
        for name, text in sorted(self.settings.items()):
            parts["daemon" if name == "adopt" else "placement"].append(f"{name} = {text}")
        self.tell(f"pcinuma.conf: {setting} = {value}, and SIGHUP")
        self.world.configure("".join("\n".join([f"[{part}]", *lines, ""]) for part, lines in parts.items()))
        self.world.sweep()
        self._observe()

    @precondition(lambda self: self.world.watched)
    @rule()
    def look_at_everything(self) -> None:
        self.tell("SIGHUP: the daemon looks at all domains")
        self.world.sweep()
        self.only_looked = True
        self._observe()
        self.only_looked = False

    @precondition(lambda self: self.world.watched and self.restarts)
    @rule(how=st.sampled_from(["TERM", "KILL"]), stays_off=st.booleans())
    def the_daemon_ends(self, how: str, stays_off: bool) -> None:
        self.tell(f"SIG{how} to the daemon" + ("" if stays_off else ", and it is started again"))
        self.restarts -= 1
        self.world.stop_daemon(15 if how == "TERM" else 9)
        if not stays_off:
            self.world.start_daemon()
        self._observe()

    @precondition(lambda self: not self.world.watched)
    @rule()
    def the_daemon_is_back(self) -> None:
        self.tell("the daemon is started")
        self.world.start_daemon()
        self._observe()

    @precondition(lambda self: self.world.watched and self.lives and self.restarts)
    @rule(which=st.integers(0, MOST - 1), number=st.integers(0, len(DEVICES) - 1))
    def killed_beside_a_change(self, which: int, number: int) -> None:
        life = self._life(which)
        self.restarts -= 1
        source = DEVICES[number]
        if source in self._has(life):
            deed, word = detach(source), "detached"
        else:
            deed, word = attach(source), "attached"
        self.tell(f"{life.name}: {source} is {word}, SIGKILL to the daemon at that moment, and it is started again")
        self._deeds(life, deed, devices=True)
        self.world.stop_daemon(9)
        self.world.start_daemon()
        self._observe()

    @precondition(lambda self: self.restarts)
    @rule(kill=st.booleans())
    def libvirtd_restarts(self, kill: bool) -> None:
        self.tell(f"libvirtd is {'killed' if kill else 'stopped'} and started again")
        self.restarts -= 1
        self.world.restart_libvirtd(kill=kill)
        self._observe()

    @precondition(lambda self: self.lives)
    @rule(which=st.integers(0, MOST - 1), then=st.sampled_from(["shut", "save", "run on"]))
    def start(self, which: int, then: str) -> None:
        """With a passthrough device it fails, since there is no VFIO here; without, a guest runs that may be saved."""
        life = self._life(which)
        if life.running:
            self.tell(f"{life.name} is shut off")
            self._shut(life)
        elif self._has(life) or life.saved:
            if life.saved:
                return
            self.tell(f"{life.name} is started, which fails")
            try:
                self.world.connection.lookupByName(life.name).create()
            except libvirt.libvirtError as error:
                self.tell(f"  {error.get_error_message()}")
        else:
            self.tell(f"{life.name} is started; then: {then}")
            domain = self.world.connection.lookupByName(life.name)
            try:
                domain.create()
            except libvirt.libvirtError as error:
                self.tell(f"  {error.get_error_message()}")
                self._observe()
                return
            life.running = True
            if then == "save":
                domain.managedSave(0)
                life.saved, life.running = True, False
            elif then == "shut":
                self._shut(life)
        self._await_state(life)
        self._observe()

    @precondition(lambda self: any(life.saved for life in self.lives) and self.world.watched)
    @rule()
    def saved_states_are_removed(self) -> None:
        for life in self.lives:
            if life.saved:
                self.tell(f"virsh managedsave-remove {life.name}; the daemon looks at all domains")
                self.world.connection.lookupByName(life.name).managedSaveRemove(0)
                life.saved = False
        self.world.sweep()
        self._observe()

    def _shut(self, life: Life) -> None:
        if life.running:
            self.world.connection.lookupByName(life.name).destroy()
            life.running = False
            self._await_state(life)

    def _await_state(self, life: Life) -> None:
        if self.world.watched:
            state = "running" if life.running else "shut off"
            until(lambda: (self._entry(life) or {}).get("state") == state, f"pcinumad to know that {life.name} is {state}")

    # How a step is done.

    def tell(self, words: str) -> None:
        self.story.append(words)

    def ask(self, *words: str, codes: Sequence[int] = (0,)) -> Said:
        """Run the command."""
        self.tell(f"pcinuma {' '.join(words)}{'' if self.world.watched else ' (without the daemon)'}")
        said = self.world.pcinuma(*words)
        if said.code not in codes:
            self._fail(None, [f"exit {said.code}: {said.err or said.out}"])
        return said

    def _life(self, which: int) -> Life:
        return self.lives[which % len(self.lives)]

    def _free_name(self) -> str:
        used = {life.name for life in self.lives}
        return next(name for name in NAMES if name not in used)

    def _has(self, life: Life) -> list[str]:
        present = {device.source for device in passed(life.xml.encode())}
        return [source for source in DEVICES if named(source) in present]

    def _define(self, name: str, kind: str, sources: list[str], *, extras: bool = False, policy: Optional[str] = None) -> None:
        tail = f"{', with a NIC, graphics and metadata' if extras else ''}{f', policy {policy}' if policy else ''}"
        self.tell(f"{name} is defined: {kind}, {' '.join(sources) or 'no device'}{tail}")
        number = str(uuid.uuid4())
        life = Life(name, number, written(name, number, kind, sources, extras=extras, policy=policy))
        self.lives.append(life)
        self._deeds(life, define(life.file))

    def _deeds(self, life: Life, *deeds: Deed, devices: bool = True) -> None:
        """Do them, on the domain and on what stands for it elsewhere."""
        if not deeds:
            return
        self._expect(life, *deeds, devices=devices)
        domain = self.world.connection.lookupByName(life.name) if life.xml else None
        for deed in deeds:
            domain = deed(self.world.connection, domain)
        if not life.xml and self.world.watched:
            until(lambda: self._entry(life), "pcinumad to know that it is there")

    def _expect(self, life: Life, *deeds: Deed, devices: bool) -> None:
        """Somebody does these: work out what libvirt makes of them, with us and without. ``devices``: they may give or take addresses."""
        life.before = self.world.alone(life.xml or None, *deeds)
        life.certain = len(deeds) == 1 or not self.world.watched
        there = {device.source for device in passed(life.before.encode())}
        if life.xml and (set(placed(life.xml)) & there) - set(placed(life.before)):
            life.undone.append(time.monotonic())
        if ours(life.before.encode()):
            life.owners = self.world.alone(life.owners, *deeds)
            life.exact = life.exact and not devices
        else:
            life.owners, life.exact = life.before, True

    def _entry(self, life: Life) -> Optional[dict[str, Any]]:
        """What Status says of it."""
        return next((dict(entry) for entry in self.world.daemon.call("Status")["domains"] if entry["uuid"] == life.uuid), None)

    def allowed(self, life: Life) -> bool:
        """Whether the domain is placed without a person asking for it, as :mod:`pcinuma.daemon.permission` promises it."""
        decided = self.decided.get(life.uuid)
        if decided is not None:
            return decided
        if metadata_attribute(life.before or life.xml, "policy") in ("preferred", "required"):
            return True
        return life.uuid not in self.existing and self.settings.get("adopt", "new") == "new"

    # What must hold after it.

    def _observe(self) -> None:
        """Wait until the daemon has dealt with the step, and look at every domain."""
        status = self.world.daemon.settle() if self.world.watched else None
        for life in self.lives:
            self._look(life, status)
        complaints = self.world.complaints()
        if complaints:
            self._fail(None, ["the daemon complains:\n" + "\n".join(complaints)])
        if status is not None and len(status["domains"]) != len(self.lives):
            listed = [entry["name"] for entry in status["domains"]]
            self._fail(None, [f"status lists {listed}, there are {[life.name for life in self.lives]}"])

    def _look(self, life: Life, status: Optional[dict[str, Any]]) -> None:
        host = self.world.model
        entry = None
        if status is not None:
            entry = next((entry for entry in status["domains"] if entry["uuid"] == life.uuid), None)
            if entry is not None and entry["reason"] == "contended":
                entry = self._contended(life)
        before, after = life.before if life.before is not None else life.xml, self.world.definition(life.name)
        now = homes(after, host)
        allowed = self.allowed(life)
        policy = metadata_attribute(after, "policy") or self.settings.get("policy", "preferred")
        found: list[str] = []
        if life.reverted:
            found += self._undone(life, after) if ours(before.encode()) else self._same(life, before, after)
        elif not (life.asked or (allowed and self.world.watched)) or policy == "off" or life.saved:
            found += self._same(life, before, after)
            now = life.homes  # what changed meanwhile counts when it is dealt with again
        else:
            plan = self._what_more(life)
            found += self._placed(life, before, after, policy, now, plan)
            if plan["report"]["outcome"] == "fallback":  # it stands as it did
                now = {**now, **{source: was for source, was in life.homes.items() if source in now}}
        if status is not None:
            found += status_faults(after, entry, allowed)
            if entry is not None and entry["name"] != life.name:
                found.append(f"status calls it {entry['name']}")
        if found:
            self._fail(life, [*found, f"definition before and after:\n{difference(before, after)}", after])
        if not ours(after.encode()):
            life.owners, life.exact = after, True
        life.xml, life.homes = after, now
        life.before, life.certain = None, True
        life.asked = life.afresh = life.reverted = False

    def _same(self, life: Life, before: str, after: str) -> list[str]:
        """Nothing was to be done."""
        if life.certain:
            unchanged = before == after if self.only_looked else same(before, after)
            return [] if unchanged else [f"changed, though it is to be left alone:\n{difference(before, after)}"]
        one, other = shape(before), shape(after)
        return [] if one == other else [f"changed, though it is to be left alone:\n{difference(one, other)}"]

    def _undone(self, life: Life, back: str) -> list[str]:
        return undo_faults(life.owners, life.exact, back)

    def _placed(self, life: Life, before: str, after: str, policy: str, now: dict[str, Home], plan: dict[str, Any]) -> list[str]:
        """It was to be placed. ``plan``: what another look would do."""
        host = self.world.model
        one, other = before.encode(), after.encode()
        found = foreign_device_faults(before, after, exact=life.certain)
        if self.only_looked and before != after:
            found.append(f"looked at again, and changed:\n{difference(before, after)}")
        if plan["changed"]:
            found.append(f"not settled: a look now would change it: {plan['report']}")
        found += placement_faults(before, after, host, plan["report"], exact=life.certain)
        mine, before_mine = ours(other), ours(one)
        if before_mine and mine and not life.afresh and life.certain and not kept(before) and not kept(after):
            found += movement_faults(life.xml or before, before, life.homes, after, now)
        if before_mine and not mine:
            found += self._undone(life, after)
        elif mine and (before != after or before != life.xml):
            reverted = engine.revert(other).xml.decode()
            found += [f"if it were reverted: {fault}" for fault in self._undone(life, self.world.alone(reverted))]
        missing = absent(after, host)
        if missing:
            if mine and not before_mine and life.certain:
                found.append(f"placed, although the host does not have {', '.join(missing)}")
        elif policy == "required" and self._unmet(after, now):
            pass  # all or nothing: the start is refused, and says why
        else:
            sits = set(placed(after))
            lacking = [source for source in placeable(after, host) if source not in sits]
            if lacking:
                found.append(f"not placed, although the guest has a place for {', '.join(lacking)}: {plan['report']}")
        if placement(other) is not None and not mine:
            found.append("there is a <placement>, and nothing of it")
        return found

    def _unmet(self, xml: str, now: dict[str, Home]) -> bool:
        host, stays = self.world.model, kept(xml)
        there = [device for device in passed(xml.encode(), host) if device.host_address in host.functions]
        known = {device.source for device in there if host.node_of(device.host_address or "") is not None}
        return any(place is None and source in known and source not in stays for source, place in now.items())

    def _what_more(self, life: Life) -> dict[str, Any]:
        """What another look would do to it, and the report of what it is now."""
        if self.world.watched:
            return self.world.daemon.call("PlaceDomain", {"domain": life.uuid, "dry_run": True})
        plan: dict[str, Any] = self.world.pcinuma("plan", life.name, "--json").json()["domains"][0]
        return plan

    def _contended(self, life: Life) -> Optional[dict[str, Any]]:
        """The daemon backs off from an owner who undoes what it does. Only from such a one; and a person's word ends it."""
        recent = [moment for moment in life.undone if time.monotonic() - moment < WITHIN]
        self.tell(f"  {life.name} is contended: placed and undone {len(recent)} times within {WITHIN:g} s")
        if len(recent) < CONTENDED:
            self._fail(life, [f"contended, though its owner undid a placement {len(recent)} times only"])
        self.world.daemon.call("PlaceDomain", {"domain": life.uuid, "force": True})
        life.undone.clear()
        return self._entry(life)

    def _fail(self, life: Optional[Life], found: Sequence[str]) -> None:
        head = f"after {len(self.story)} steps{f', {life.name}' if life else ''}:"
        story = [f"{number:3} {words}" for number, words in enumerate(self.story, 1)]
        state = f"host: {self.world.hardware}; pcinuma.conf: {self.settings}; decided: {self.decided}"
        log = self.world.daemon.log().splitlines()[-LOG:]
        raise AssertionError("\n".join([head, *found, "", "What happened:", *story, state, "", "The end of the daemon's log:", *log]))


def _foreseen(done: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """What a plan could know of what was done: where it gave a device no address, libvirt chose one, with a port for it if need be."""
    free = {move["source"] for move in plan["moves"] if move["after"] is None}
    if not free:
        return done
    moves = [{**move, "after": None} if move["source"] in free else move for move in done["moves"]]
    return {**{key: value for key, value in done.items() if not key.startswith("controllers_")}, "moves": moves}
