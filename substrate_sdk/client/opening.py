"""Something that is being made: awaited, or entered as an asynchronous context manager."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar


class _Entered(Protocol):
    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


EnteredT = TypeVar("EnteredT", bound=_Entered)


class Opening(Generic[EnteredT]):
    """``world = await sub.world()`` and ``async with sub.world() as world`` both work."""

    def __init__(self, make: Callable[[], Awaitable[EnteredT]]) -> None:
        self._make = make
        self._made: EnteredT | None = None

    def __await__(self) -> Generator[Any, Any, EnteredT]:
        return self._make().__await__()

    async def __aenter__(self) -> EnteredT:
        self._made = await self._make()
        return await self._made.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._made is not None
        await self._made.__aexit__(kind, error, trace)
