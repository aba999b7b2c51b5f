"""Whether a world may have the network that it is to have: the broker says (DESIGN §8)."""

from __future__ import annotations

from typing import Protocol

from substrate_services.errors import ServiceError
from substrate_services.journal.codec import decision_line
from substrate_services.journal.schema import Decision
from substrate_services.journal.writer import Journal
from substrate_services.world.owner import as_its_owner
from substrate_services.world.spec import WorldSpec
from substrate_services.world.steps import is_denied


class NetworkDecider(Protocol):
    """Asks the broker."""

    async def decide_network(self, spec: WorldSpec) -> Decision:
        """What policy says of a world with this network."""
        ...


class Admission:
    """Asks about each network before a world has it, and notes the answer down.

    Args:
        decider: the broker.
        journal: hears of every decision, also where no world is made.
    """

    def __init__(self, decider: NetworkDecider, journal: Journal) -> None:
        self._decider = decider
        self._journal = journal

    async def require(self, spec: WorldSpec) -> None:
        """Return where a world may have its network; without one nobody is asked.

        Raises:
            ServiceError: POLICY_DENIED; also where policy asks, as nobody is there to answer.
        """
        if not spec.network:
            return
        decision = as_its_owner(await self._decider.decide_network(spec))
        self._journal.append(
            decision_line(
                decision,
                span_id=None,
                session_id=spec.session_id,
                world_id=spec.world_id,
                agent_id=spec.agent_id,
            )
            | {"network": list(spec.network)}
        )
        if is_denied(decision):
            rules = " ".join(f"--net {rule}" for rule in spec.network)
            raise ServiceError(
                "POLICY_DENIED", f"{rules}: {decision.reason} (rule {decision.rule_id})"
            )
