"""What went over a world's network during a step: events of the kernel's, and what was blocked.

A flow belongs to the step in whose time it began. Where several ran, to the one whose programs
say that they connected there; what nobody claims goes to the step that ends last. What began
outside any step is a line of the world's life.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from substrate_services.journal.codec import SpanStart, lifecycle_line, timestamp
from substrate_services.journal.jsontypes import JsonObject, JsonValue
from substrate_services.journal.schema import Blocked
from substrate_services.journal.writer import Journal
from substrate_services.network.addresses import METADATA
from substrate_services.network.presets import rule_for
from substrate_services.network.ruleset import FLOWS_LIMIT, NAMED_LIMIT, NEW_FLOWS_PER_S
from substrate_services.world.networks import Flow, Networks
from substrate_services.world.worlds import World

INLINE_FLOWS = 512
_METADATA = frozenset(map(str, METADATA))


@dataclass(frozen=True, slots=True)
class StepFlows:
    """The network side of a step."""

    events: tuple[JsonObject, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class _Held:
    after: int = 0
    flows: list[Flow] = field(default_factory=list)


class StepNetwork:
    """Parts the flows of one host's worlds among their steps.

    Args:
        networks: tells of them.
        journal: hears of those that belong to no step.
    """

    def __init__(self, networks: Networks, journal: Journal) -> None:
        self._networks = networks
        self._journal = journal
        self._held: dict[str, _Held] = {}

    async def of_step(
        self, world: World, start: SpanStart, events: Iterable[Mapping[str, object]]
    ) -> StepFlows:
        """What belongs to a step that has ended.

        Args:
            world: the step's.
            start: the step.
            events: what its programs say of themselves.
        """
        held = await self._collect(world)
        if held is None:
            return StepFlows()
        began_ns = round(start.start_time * 1e9)
        alone = world.running <= 1
        claimed = set() if alone else {_peer(event) for event in events}
        mine, others = [], []
        for flow in held.flows:
            peer = (flow.text("address"), flow.number("port"))
            if flow.number("time_ns") >= began_ns and (alone or peer in claimed):
                mine.append(flow)
            else:
                others.append(flow)
        held.flows = others
        if alone:
            self._tell_rest(world, held)
        told = [flow for flow in mine if flow.text("kind") != "way_out"][:INLINE_FLOWS]
        return StepFlows(
            events=tuple(_event(flow, start) for flow in told),
            blocked=blocked_flows(mine, world.spec.network),
            counts=_counts(mine),
        )

    async def finish(self, world: World) -> None:
        """Tell of what no step of a world that ends has been told."""
        held = await self._collect(world)
        if held is not None:
            self._tell_rest(world, held)
            self._held.pop(world.spec.world_id, None)

    async def _collect(self, world: World) -> _Held | None:
        world_id = world.spec.world_id
        held = self._held.get(world_id)
        found, lost = await self._networks.flows(world_id, held.after if held else 0)
        if not found and held is None:
            return None
        if held is None:
            held = self._held[world_id] = _Held()
        # The same is told again until it is known to have arrived.
        fresh = [flow for flow in found if flow.number("seq") > held.after]
        held.flows += fresh
        for flow in fresh:
            if flow.text("kind") == "way_out":
                self._log(world, f"network_{flow.text('verdict')}", {})
        held.after = max((flow.number("seq") for flow in fresh), default=held.after)
        if lost:
            self._log(world, "network_flows_lost", {"count": lost})
        return held

    def _tell_rest(self, world: World, held: _Held) -> None:
        for flow in held.flows[:INLINE_FLOWS]:
            if flow.text("kind") != "way_out":
                self._log(world, "network_flow", {"flow": _facts(flow)})
        if len(held.flows) > INLINE_FLOWS:
            self._log(world, "network_flows_lost", {"count": len(held.flows) - INLINE_FLOWS})
        held.flows = []

    def _log(self, world: World, event_type: str, detail: Mapping[str, JsonValue]) -> None:
        self._journal.append(
            lifecycle_line(
                event_type,
                session_id=world.spec.session_id,
                world_id=world.spec.world_id,
                agent_id=world.spec.agent_id,
                detail=detail,
            )
        )


def _peer(event: Mapping[str, object]) -> tuple[str, int]:
    address, port = event.get("address"), event.get("port")
    if event.get("syscall") in ("connect", "sendto", "sendmsg") and isinstance(address, str):
        return address, port if isinstance(port, int) else 0
    return "", -1


def _facts(flow: Flow) -> JsonObject:
    kept = (
        "kind",
        "verdict",
        "protocol",
        "name",
        "address",
        "port",
        "local_port",
        "sent_bytes",
        "received_bytes",
        "ended",
        "count",
        "type",
        "forged",
        "crowded",
        "flow",
    )
    facts: JsonObject = {}
    for name in kept:
        value = flow.fields.get(name)
        if value is not None and isinstance(value, str | int):
            facts[name] = value
    return facts


def _event(flow: Flow, start: SpanStart) -> JsonObject:
    return {
        "event_type": "network_flow",
        "ts": timestamp(flow.number("time_ns") / 1e9),
        "span_id": start.span_id,
        "parent_span": start.span_id,
        "session_id": start.session_id,
        "trace_id": start.trace_id,
        "world_id": start.world_id,
        "exec_id": start.exec_id,
        "component": "network",
        "source": "kernel",
        **_facts(flow),
    }


def _counts(flows: Iterable[Flow]) -> tuple[tuple[str, int], ...]:
    counts = {"flow_allowed": 0, "flow_blocked": 0}
    for flow in flows:
        if flow.text("kind") == "way_out":
            continue
        if flow.text("verdict") == "blocked":
            counts["flow_blocked"] += max(1, flow.number("count"))
        else:
            counts["flow_allowed"] += 1
    return tuple((name, count) for name, count in counts.items() if count)


# -- for people ------------------------------------------------------------------------------------


def blocked_flows(flows: Iterable[Flow], network: tuple[str, ...]) -> tuple[Blocked, ...]:
    """What the filter and the resolver kept from a world, each once."""
    found: dict[str, Blocked] = {}
    for flow in flows:
        if flow.text("verdict") not in ("blocked", "lost"):
            continue
        one = _blocked(flow, "full" if "full" in network else "allow")
        found.setdefault(one.what, one)
        if len(found) >= 64:
            break
    return tuple(found.values())


def _blocked(flow: Flow, mode: str) -> Blocked:
    name, address, port = flow.text("name"), flow.text("address"), flow.number("port")
    rule = f"network-{mode}"
    if flow.text("kind") == "way_out":
        return Blocked(
            "connections that were open",
            "network",
            "network-way-out",
            "what carries the packets of worlds ended, and is started again: try once more",
        )
    if flow.text("kind") == "lookup":
        what = f"resolve {name}"
        if flow.text("type") == "private":
            return Blocked(
                what,
                "network",
                "network-private-answer",
                "the name leads into a private network; allow its block too: `--net 10.0.0.0/8`",
            )
        if flow.text("type") == "crowd":
            return Blocked(
                what,
                "limits",
                "network_names",
                f"the names of a world have at most {NAMED_LIMIT:,} addresses open: allow the "
                "block of addresses instead",
            )
        return Blocked(what, "network", rule, f"add `--net {rule_for(name, None)}`")
    shown = f"[{address}]" if ":" in address else address
    what = f"connect {name or shown}:{port}" if port else f"reach {name or shown}"
    if flow.fields.get("crowded") is True:
        return Blocked(
            what,
            "limits",
            "network_flows",
            f"a world has {FLOWS_LIMIT:,} flows at once and {NEW_FLOWS_PER_S:,} new ones a second: "
            "use connections again, or part the work among worlds",
        )
    if flow.fields.get("forged") is True:
        return Blocked(
            what, "network", "network-forged-source", "send from the world's own address"
        )
    if address in _METADATA:
        return Blocked(
            what, "network", "network-metadata", "no rule opens the addresses of cloud metadata"
        )
    fix = f"add `--net {rule_for(name or address, port or None)}`"
    if mode == "full":
        fix = "it is the host's own or no unicast address; `--net host:PORT` opens a host's service"
    return Blocked(what, "network", rule, fix)
