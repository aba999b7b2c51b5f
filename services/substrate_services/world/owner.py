"""What the call of a world's owner answers by itself."""

from __future__ import annotations

from dataclasses import replace

from substrate_services.journal.schema import Decision

_BUILTIN_POLICY = "<built-in>"


def as_its_owner(decision: Decision) -> Decision:
    """The call itself answers what the built-in policy would ask: the owner makes it.

    A policy of the host's, the project's or the session's own that asks, or denies, is not
    answered by it.
    """
    asked = decision.enforced and decision.action == "ask"
    if not (asked and decision.rule_id == "default" and _BUILTIN_POLICY in decision.source):
        return decision
    return replace(
        decision,
        action="allow",
        reason="The owner of the project asks for it themselves.",
        decider="owner",
    )
