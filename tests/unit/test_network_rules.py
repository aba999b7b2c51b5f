"""Network rules by themselves: what they open, what may be answered, how sets are bounded."""

from __future__ import annotations

import ipaddress

import pytest

from substrate_services.network.addresses import METADATA, SLOTS, may_answer, slot_of, world_v4
from substrate_services.network.addresses import world_v6 as world_v6_of
from substrate_services.network.presets import PRESETS, rule_for
from substrate_services.network.rules import BadRule, parse_rules
from substrate_services.network.ruleset import mark_of


def test_every_preset_is_made_of_rules_and_is_found_by_its_names() -> None:
    for name in PRESETS:
        assert parse_rules([f"@{name}"]).domains
    assert rule_for("registry.npmjs.org", None) == "@npm"
    assert rule_for("objects.githubusercontent.com", 443) == "@github"
    assert rule_for("githubusercontent.com", 443) == "githubusercontent.com:443"
    assert rule_for("2001:db8::1", 80) == "[2001:db8::1]:80"
    assert rule_for("host", 5432) == "host:5432"


def test_a_wildcard_opens_names_below_it_and_not_itself() -> None:
    rules = parse_rules(["*.example.org:443", "Example.NET"])
    assert rules.name_ports("a.b.example.org") == {443}
    assert rules.name_ports("example.org") == frozenset()
    assert rules.name_ports("notexample.org") == frozenset()
    assert rules.name_ports("example.net") == {None}
    assert rules.name_ports("a\\.example.org") == frozenset()  # one label with a dot: below org


@pytest.mark.parametrize(
    "text",
    ["", "*", "-a.example", "a..b", "1.2.3", "host:0", "host:65536", "@", "a" * 64, "10.0.0/8"],
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(BadRule):
        parse_rules([text])


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "169.254.1.1", "::1", "fe80::1", "fc00::1", "::ffff:10.0.0.1",
     "64:ff9b::a00:1", "2002:a00:1::", "224.0.0.1", "0.0.0.0", "192.168.1.1", "100.64.0.1"],
)  # fmt: skip
def test_an_answer_inside_is_dropped_but_by_a_block(address: str) -> None:
    parsed = ipaddress.ip_address(address)
    assert not may_answer(parsed, parse_rules(["example.org"]), frozenset())
    written = f"[{address}]" if ":" in address else address
    assert may_answer(parsed, parse_rules(["example.org", written]), frozenset())


def test_metadata_and_the_host_are_answered_by_no_rule() -> None:
    rules = parse_rules(["full", "0.0.0.0/0", "::/0"])
    host = frozenset([ipaddress.ip_address("198.18.0.2")])
    for address in (*METADATA, *host, ipaddress.ip_address("::ffff:169.254.169.254")):
        assert not may_answer(address, rules, host)
    assert may_answer(ipaddress.ip_address("93.184.216.34"), rules, host)


def test_worlds_have_addresses_of_their_own() -> None:
    for slot in (SLOTS.start, 255, 256, 4096, SLOTS.stop - 1):
        assert slot_of(world_v4(slot)) == slot_of(world_v6_of(slot)) == slot
    assert slot_of(ipaddress.ip_address("10.207.0.1")) is None
    assert slot_of(ipaddress.ip_address("10.207.255.2")) is None


def test_a_flow_is_marked_with_the_rules_that_let_it_begin() -> None:
    one, two = parse_rules(["example.org"]), parse_rules(["example.org:443"])
    assert mark_of(one) == mark_of(parse_rules(["EXAMPLE.org"]))
    assert mark_of(one) != mark_of(two)
    assert mark_of(two) != 0
