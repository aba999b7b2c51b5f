"""The users of these tests, and the internet of some."""

from __future__ import annotations

from tests.internet_fixtures import internet, online
from tests.user_fixtures import lone_user, own_checkout, rootless, user, who, world

__all__ = ["internet", "lone_user", "online", "own_checkout", "rootless", "user", "who", "world"]
