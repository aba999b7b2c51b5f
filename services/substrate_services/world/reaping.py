"""When a world's time has come."""

from __future__ import annotations

import time

from substrate_services.world.worlds import DEFAULT_IDLE_TIMEOUT_S, World


def is_over(world: World) -> bool:
    """Whether a world is to go: expired, or idle and nobody said to keep it.

    Expiry counts on whatever the world does. A paused world waits for somebody; it does not idle.
    """
    spec = world.spec
    if spec.expires_at is not None and time.time() >= spec.expires_at:
        return True
    if world.running or world.state.paused:
        return False
    idle_s = spec.idle_timeout_s
    if idle_s is None:
        if spec.keep:
            return False
        idle_s = DEFAULT_IDLE_TIMEOUT_S
    return time.monotonic() - world.last_used >= idle_s


def needs_host(world: World) -> bool:
    """Whether a host that nobody calls has to stay for it, to record or to take it away."""
    spec = world.spec
    timed = spec.expires_at is not None or spec.idle_timeout_s is not None
    return not spec.keep or world.running > 0 or timed
