"""How long a host may take to start."""

from __future__ import annotations

from pathlib import Path

import pytest

from substrate_sdk.client.embedded import ensure_host, start_timeout_s
from substrate_sdk.config import HostPaths
from substrate_sdk.errors import HostUnavailable


def test_a_slow_machine_gives_a_host_more_time_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUBSTRATE_START_TIMEOUT_S", raising=False)
    assert start_timeout_s() == 30
    monkeypatch.setenv("SUBSTRATE_START_TIMEOUT_S", "300")
    assert start_timeout_s() == 300


@pytest.mark.parametrize("value", ["", "0", "-1", "inf", "nan", "soon"])
def test_no_time_at_all_is_refused_before_anything_is_made(
    value: str, substrate_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBSTRATE_START_TIMEOUT_S", value)
    paths = HostPaths(substrate_home)
    with pytest.raises(HostUnavailable, match="SUBSTRATE_START_TIMEOUT_S"):
        ensure_host(paths)
    assert not substrate_home.exists()
