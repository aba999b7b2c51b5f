"""The policy in force over time: read once, read again when a file changes.

Looking whether a file changed costs a few ``stat`` calls per decision. A host file that has become
wrong does not take the policy out of force: the one before stays, and the mistakes are in
``problems`` (and in the log) until the file is right. A project or session file that is wrong
stops the steps it is for: nobody else is held up by it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

from substrate_services.broker.policy import (
    HostPolicyError,
    Policy,
    PolicyError,
    layer_files,
    merge_layers,
    read_layers,
)
from substrate_services.broker.policy_file import LayerFile, Problem

_log = logging.getLogger(__name__)
_MAX_VARIANTS = 64  # projects and session files kept merged
_Stamp = tuple[tuple[int, int, int, int] | None, ...]
_Key = tuple[Path | None, tuple[Path, ...]]


class PolicySource:
    """Gives the policy for a project and session, always as the files stand now. Thread-safe.

    Args:
        home: the host's $SUBSTRATE_HOME; None leaves the host layer out.

    Attributes:
        problems: what is wrong with the host's files now, while an earlier reading is in force.
    """

    def __init__(self, home: Path | None) -> None:
        self.problems: tuple[Problem, ...] = ()
        self._home = home
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, tuple[_Stamp, Policy]] = OrderedDict()
        self._host_paths: tuple[Path, ...] = ()
        self._host_stamp: _Stamp | None = None
        self._host_layers: list[LayerFile] | None = None

    def current(self, *, project: Path | None = None, files: Sequence[Path] = ()) -> Policy:
        """The policy now.

        Args:
            project: the project's root on the host.
            files: session files, in order.

        Raises:
            PolicyError: a project or session file is wrong.
            HostPolicyError: a host file is wrong, and they were never right since the start.
        """
        key = (project, tuple(files))
        with self._lock:
            host = self._read_host()
            stamp = _stamp(self._own_files(project, files)) if project or files else ()
            kept = self._kept.get(key)
            if kept is not None and kept[0] == stamp:
                return kept[1]
            own = [entry for entry in layer_files(files, project=project) if entry[0] != "builtin"]
            policy = merge_layers([*host, *read_layers(own)])
            self._kept[key] = (stamp, policy)
            self._kept.move_to_end(key)
            while len(self._kept) > _MAX_VARIANTS:
                self._kept.popitem(last=False)
            return policy

    def host_files(self) -> list[Path]:
        """The host's policy files, in order, right or wrong."""
        return [path for layer, path in layer_files(home=self._home) if layer == "host"]

    def reload(self) -> Policy:
        """Read the host's files now, changed or not.

        Raises:
            HostPolicyError: a file is wrong; the policy before stays in force.
        """
        with self._lock:
            self._host_stamp = None
        policy = self.current()
        if self.problems:
            raise HostPolicyError(self.problems)
        return policy

    def _read_host(self) -> list[LayerFile]:
        """The built-in and host layers, read again when a stat says they changed."""
        if self._host_layers is not None and self._host_stamp == self._stamp_host():
            return self._host_layers
        entries = layer_files(home=self._home)
        self._host_paths = tuple(path for layer, path in entries if layer == "host")
        self._host_stamp = self._stamp_host()  # before reading: a change meanwhile shows next time
        try:
            layers = read_layers(entries)
            merge_layers(layers)
        except PolicyError as error:
            self.problems = error.problems
            if self._host_layers is None:
                self._host_stamp = None
                raise HostPolicyError(error.problems) from error
            for problem in error.problems:
                _log.warning("policy not taken, the one before stays in force: %s", problem)
            return self._host_layers
        self.problems = ()
        self._host_layers = layers
        self._kept.clear()
        return layers

    def _stamp_host(self) -> _Stamp:
        if self._home is None:
            return ()
        return _stamp([self._home / "policies", *self._host_paths])

    @staticmethod
    def _own_files(project: Path | None, files: Sequence[Path]) -> list[Path]:
        own = [] if project is None else [project / ".substrate" / "policy.yaml"]
        return [*own, *files]


def _stamp(paths: Iterable[Path]) -> _Stamp:
    """What tells a changed file from an unchanged one, without reading it."""
    stamps: list[tuple[int, int, int, int] | None] = []
    for path in paths:
        try:
            info = os.lstat(path)
        except OSError:
            stamps.append(None)
            continue
        stamps.append((info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns))
    return tuple(stamps)
