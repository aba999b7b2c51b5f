"""What doctor and capabilities say of the worlds that are kept ready."""

from __future__ import annotations

from substrate_sdk._pb.substrate.world.v1alpha1 import worlds_pb2
from substrate_services.world.pool import PoolCounts


def pool_row(counts: PoolCounts) -> worlds_pb2.Capability:
    """One line: whether there is a pool, how full it is, and how often it served."""
    if counts.size == 0:
        mode = "off (worlds.warm_pool in host.toml)"
    else:
        mode = (
            f"{counts.ready} of {counts.size} ready; "
            f"{counts.claimed} claimed, {counts.missed} not in time"
        )
    return worlds_pb2.Capability(feature="warm_pool", state="works", mode=mode)
