"""``host.toml`` in the home of a host: what its owner sets; all of it optional."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from substrate_services.world.pool import POOL_LIMIT

FILE = "host.toml"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a host goes by.

    Attributes:
        warm_pool: how many worlds to keep ready before anybody asks for them.
    """

    warm_pool: int = 0


def read_settings(home: Path) -> Settings:
    """Read a home's settings; the defaults where there is no file.

    Raises:
        ValueError: a mistake in the file; the text names it and what is expected.
        OSError: the file cannot be read.
    """
    path = home / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    worlds = found.pop("worlds", {})
    if found:
        raise ValueError(f"{path}: {min(found)!r} is not known; [worlds] is")
    if not isinstance(worlds, dict):
        raise ValueError(f"{path}: worlds is a table: write [worlds]")  # noqa: TRY004 # the file's
    warm_pool = worlds.pop("warm_pool", 0)
    if worlds:
        raise ValueError(f"{path}: worlds.{min(worlds)} is not known; worlds.warm_pool is")
    if type(warm_pool) is not int or not 0 <= warm_pool <= POOL_LIMIT:
        raise ValueError(
            f"{path}: worlds.warm_pool is {warm_pool!r}; "
            f"expected a number of worlds from 0 to {POOL_LIMIT}"
        )
    return Settings(warm_pool)
