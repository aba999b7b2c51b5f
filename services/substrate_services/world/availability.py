"""Whether this host can make worlds, and what to change where it cannot."""

from __future__ import annotations

import asyncio

from substrate_services.errors import ServiceError
from substrate_services.world.backends.base import (
    Backend,
    BackendCapabilities,
    BackendUnavailable,
)


class Availability:
    """Starts the backend when it is first needed; tries again after a failure.

    A host without namespaces still serves its records, so that nothing recorded is out of reach.

    Args:
        backend: makes boxes.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lock = asyncio.Lock()

    async def require(self) -> None:
        """Return once worlds can be made. Raises ServiceError NO_NAMESPACES with the fix."""
        async with self._lock:
            # Idempotent, and notices a launcher that has gone.
            try:
                await self._backend.start()
            except BackendUnavailable as error:
                raise ServiceError("NO_NAMESPACES", f"{error}; {error.fix}") from error

    async def look(self) -> tuple[BackendCapabilities | None, str, str]:
        """What the backend can do; or None, why it cannot, and what to change."""
        async with self._lock:
            try:
                await self._backend.start()
            except BackendUnavailable as error:
                return None, str(error), error.fix
            return self._backend.capabilities(), "", ""
