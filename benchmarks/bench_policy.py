"""How long a policy decision takes with 1,000 rules.

The floor is a dictionary look-up of the whole command string: the least that any decision could
cost in this process. Target (docs/POLICY.md): p50 at most 0.1 ms.

Run: python benchmarks/bench_policy.py [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from substrate_services.broker.decide import StepRequest, decide
from substrate_services.broker.policy import Policy, load_policy
from substrate_services.broker.source import PolicySource
from substrate_services.journal.schema import Command

RULES = 1_000
ROUNDS = 2_000
TARGET_MS = 0.1
COMMANDS = {
    "simple": b"git status --short",
    "denied": b"tool7 sub7 --force",
    "compound": b'cd src && FOO=1 make -j4 test 2>&1 | tee log.txt; echo "done $?"',
    "wrapped": b"timeout 5 bash -c 'cd a; rm -rf build'",
    "dynamic": b"$TOOL --all",
    "script of 4 KiB": b"set -e\n" + b"echo building part one of it && make part1\n" * 95,
}


def policy_text(rules: int) -> str:
    """A third each of prefix rules, globs and exact commands, deny, ask and allow in turn."""
    lines = ["version: 1", "rules:"]
    for number in range(rules):
        pattern = (
            f"tool{number} sub{number}:*",
            f"tool{number} --flag{number} *",
            f"tool{number} run all",
        )[number % 3]
        action = ("deny", "ask", "allow")[number // 3 % 3]
        lines.append(f'  - {{action: {action}, command: "{pattern}"}}')
    return "\n".join(lines)


def median_us(call: Callable[[], object], rounds: int) -> float:
    """Median time of one call in microseconds, over ``rounds`` calls timed one by one."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1_000


def decide_us(policy: Policy, shell: bytes, rounds: int) -> float:
    """Median time of one decision about a shell string, in microseconds."""
    request = StepRequest(Command((b"/bin/sh", b"-c", shell), shell))
    return median_us(lambda: decide(policy, request), rounds)


def main() -> None:
    """Print the table, or JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "policies").mkdir()
        (home / "policies" / "bench.yaml").write_text(policy_text(RULES))
        start = time.perf_counter()
        policy = load_policy(home=home)
        load_ms = (time.perf_counter() - start) * 1_000
        source = PolicySource(home)
        source.current()
        current_us = median_us(source.current, ROUNDS)
    table = {COMMANDS["simple"]: "allow"}
    floor_us = median_us(lambda: table.get(COMMANDS["simple"]), ROUNDS)
    rows = {name: decide_us(policy, shell, ROUNDS // 4) for name, shell in COMMANDS.items()}
    if options.json:
        result = {
            "rules": RULES,
            "load_ms": load_ms,
            "reload_check_us": current_us,
            "floor_us": floor_us,
            "decide_us": rows,
        }
        print(json.dumps(result))
        return
    print(f"policy of {RULES} rules: load {load_ms:.0f} ms, change check {current_us:.1f} us")
    print(f"{'command':18} {'p50 us':>8} {'x floor':>8}  target {TARGET_MS} ms for one line")
    for name, p50_us in rows.items():
        verdict = "ok" if p50_us <= TARGET_MS * 1_000 else "over"
        verdict = "" if name.startswith("script") else verdict
        print(f"{name:18} {p50_us:8.1f} {p50_us / floor_us:8.0f}  {verdict}")


if __name__ == "__main__":
    main()
