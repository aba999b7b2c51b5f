"""The users of these tests."""

from __future__ import annotations

from tests.user_fixtures import lone_user, own_checkout, rootless, user

__all__ = ["lone_user", "own_checkout", "rootless", "user"]
