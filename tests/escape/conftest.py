"""The users of these tests."""

from __future__ import annotations

from tests.user_fixtures import rootless, user

__all__ = ["rootless", "user"]
