"""The users of these tests."""

from __future__ import annotations

from tests.user_fixtures import own_checkout, rootless, user

__all__ = ["own_checkout", "rootless", "user"]
