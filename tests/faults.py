"""kill -9 of a host process, a launcher or an init at random moments, and what has to hold then.

At each point a few worlds run a few commands, one of the processes is killed, the host is started
again and the worlds are removed. Whatever was acknowledged must be recorded by then, once, with the
output that there was; and nothing may run, be mounted or be left in the home.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from substrate_sdk import Substrate
from substrate_sdk.client.sync import World
from substrate_sdk.errors import SubstrateError
from substrate_services.objects.store import ObjectStore
from tests.leaks import processes
from tests.users import Json, User, eventually, kill_and_wait

TARGETS = ("host", "launcher", "init")
_MARK = "60.0767"
_SLEEPS = ("0", "0.02", "0.1", _MARK)


@dataclass
class Tally:
    """What came of it."""

    points: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class Faults:
    """Kills what runs for a user.

    Args:
        user: whose host, not used by anybody else.
        project: the worlds' project.
        seed: of what is random.
    """

    def __init__(self, user: User, project: Path, seed: int) -> None:
        self._user = user
        self._project = project
        self._random = random.Random(seed)
        self._spans: dict[str, str] = {}  # by exec id
        self._number = 0
        self._lock = threading.Lock()
        self._began: list[int] = []  # inits that there were when somebody was killed
        self.tally = Tally()

    def point(self, target: str) -> None:
        """One death, and all checks after it."""
        self._user.up()
        with self._user.client() as sub:
            worlds = [sub.world(project=self._project, cwd=self._project) for _ in range(2)]
            threads = [
                threading.Thread(target=self._work, args=(self._random.choice(worlds),))
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            time.sleep(self._random.uniform(0, 0.25))  # the moment is what is tested: any will do
            self._kill(target)
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive(), f"a client hangs after the {target} was killed"
        self._user.up()
        with self._user.client() as sub:
            self._remove_all(sub)
        self._check(target)
        self.tally.points[target] += 1

    def _work(self, world: World) -> None:
        with self._lock:
            self._number += 1
            exec_id = f"fault-{self._number}"
            pause = self._random.choice(_SLEEPS)
        try:
            proc = world.exec(
                f"echo begin {exec_id}; sleep {pause}; echo end {exec_id}",
                stdin=False,
                exec_id=exec_id,
            )
        except SubstrateError:
            return  # nobody was told that it began
        self._spans[exec_id] = proc.span_id

    def _kill(self, target: str) -> None:
        self._began = self._inits()
        if target == "host":
            kill_and_wait(self._user.host_pid())
        elif target == "launcher":
            kill_and_wait(self._user.launcher_pid())
        else:
            assert self._began, "a world has no init"
            kill_and_wait(self._random.choice(self._began))

    def _inits(self) -> list[int]:
        launcher = self._user.launcher_pid()
        return [pid for pid in processes() if _is_init_of(pid, launcher)]

    def _left(self) -> list[int]:
        return [pid for pid in self._began if _is_init_of(pid)]

    @staticmethod
    def _remove_all(sub: Substrate) -> None:
        for world in sub.worlds():
            sub.remove_world(world.world_id)

    def _check(self, target: str) -> None:
        lines = self._user.lines()
        recorded: dict[str, list[Json]] = {}
        for line in lines:
            if line["event_type"] == "command_complete":
                recorded.setdefault(line["exec_id"], []).append(line)
        for exec_id, found in recorded.items():
            assert len(found) == 1, f"{exec_id} is recorded {len(found)} times"
        with contextlib.closing(ObjectStore(self._user.substrate_home / "objects")) as store:
            for exec_id, span_id in self._spans.items():
                assert exec_id in recorded, f"{exec_id} was acknowledged, and has no span"
                (line,) = recorded[exec_id]
                assert line["span_id"] == span_id, f"the id {exec_id} was used again"
                self._check_output(store, exec_id, line)
        self.tally.acknowledged = len(self._spans)
        self.tally.reasons = Counter(
            recorded[exec_id][0]["termination_reason"] for exec_id in self._spans
        )
        assert not _sleepers(), f"commands run on after the {target} was killed"
        home = str(self._user.substrate_home)
        mounts = [
            line for line in Path("/proc/self/mounts").read_text().splitlines() if home in line
        ]
        assert not mounts, mounts
        worlds = self._user.substrate_home / "worlds"
        eventually(lambda: not list(worlds.iterdir()), "no world is left over")
        eventually(lambda: not self._left(), "no init is left over")

    @staticmethod
    def _check_output(store: ObjectStore, exec_id: str, line: Json) -> None:
        whole = f"begin {exec_id}\nend {exec_id}\n".encode()
        digest = line["stdout_digest"]
        said = store.get(digest) if digest is not None else b""
        if line["termination_reason"] == "EXITED":
            assert said == whole, (exec_id, said)
        else:
            assert whole.startswith(said), (exec_id, said)

    def finish(self) -> None:
        """The journal is whole."""
        verified = self._user.run("trace", "verify", cwd=self._project)
        assert verified.code == 0, verified.err


def _is_init_of(pid: int, launcher: int | None = None) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    name = fields[fields.index("(") + 1 : fields.rindex(")")]
    state, parent = fields[fields.rindex(")") + 2 :].split()[:2]
    return name == "substrate-init" and launcher in (None, int(parent)) and state != "Z"


def _sleepers() -> list[int]:
    found = []
    for pid in processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == b"sleep" and _MARK.encode() in words:
            found.append(pid)
    return found
