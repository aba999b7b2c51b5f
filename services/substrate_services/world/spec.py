"""What a world is, as its directory keeps it: enough for the next host process to go on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from substrate_services.journal import bytesjson
from substrate_services.journal.jsontypes import Fields, JsonObject, compact_bytes
from substrate_services.journal.parts import (
    env_from_json,
    env_to_json,
    opt_bytes,
    text_list,
    text_pairs,
    texts,
)
from substrate_services.world.limits import NO_LIMITS, Limits
from substrate_services.world.project import Project, project_from_json, project_to_json
from substrate_services.world.replacing import replace_file

_FILE = "world.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class WorldSpec:
    """A world as it was asked for, with everything resolved that could change later."""

    world_id: str
    session_id: str
    trace_id: str
    agent_id: str
    request_id: str
    profile: str
    project: Project | None
    cwd: bytes
    home: bytes  # $HOME of the caller
    login_home: bytes  # of the user database
    env: tuple[tuple[bytes, bytes], ...]
    user: str
    network: tuple[str, ...]
    hostname: str
    labels: tuple[tuple[str, str], ...]
    keep: bool
    created_at: float  # seconds since the epoch
    expires_at: float | None
    idle_timeout_s: float | None
    policy_file: bytes | None
    restored_from: str | None  # the span whose tree it began with, before or after it
    telemetry: tuple[str, ...] = ()  # classes of events to record; all where empty
    limits: Limits = NO_LIMITS
    base: bytes = b""  # the root, where it is not the host's own: ``bases.Base.text``
    shell: bytes = b""  # for command strings, there


@dataclass(frozen=True, slots=True)
class WorldState:
    """What changes while a world lives."""

    spec: WorldSpec
    first_snapshot: str
    snapshot_id: str
    inputs_digest: str | None
    steps: int = 0
    fingerprints_digest: str | None = None
    generation: int = 0  # counts rollbacks; each has layers of its own
    paused: bool = False  # nothing of it runs

    def after_step(self, snapshot_id: str, inputs_digest: str | None) -> WorldState:
        """The state once a step is recorded."""
        return replace(
            self,
            snapshot_id=snapshot_id,
            inputs_digest=inputs_digest or self.inputs_digest,
            steps=self.steps + 1,
        )


def save_state(directory: Path, state: WorldState) -> None:
    """Write the world's file, whole or not at all."""
    replace_file(directory / _FILE, compact_bytes(_to_json(state)) + b"\n")


def has_state(directory: Path) -> bool:
    """Whether there is a world's file: the world was finished, and nobody removes it."""
    return (directory / _FILE).exists()


def forget_state(directory: Path) -> None:
    """Remove a world's file; there need not be one."""
    (directory / _FILE).unlink(missing_ok=True)


def load_state(directory: Path) -> WorldState:
    """Read the world's file. Raises FileNotFoundError, or LineError where it is damaged."""
    return _from_json(Fields(json.loads((directory / _FILE).read_bytes()), _FILE))


def _to_json(state: WorldState) -> JsonObject:
    spec = state.spec
    return {
        "v": _VERSION,
        "world_id": spec.world_id,
        "session_id": spec.session_id,
        "trace_id": spec.trace_id,
        "agent_id": spec.agent_id,
        "request_id": spec.request_id,
        "profile": spec.profile,
        "project": project_to_json(spec.project),
        "cwd": bytesjson.encode(spec.cwd),
        "home": bytesjson.encode(spec.home),
        "login_home": bytesjson.encode(spec.login_home),
        "env": env_to_json(spec.env),
        "user": spec.user,
        "network": text_list(spec.network),
        "hostname": spec.hostname,
        "labels": [[key, value] for key, value in spec.labels],
        "keep": spec.keep,
        "created_at": spec.created_at,
        "expires_at": spec.expires_at,
        "idle_timeout_s": spec.idle_timeout_s,
        "policy_file": bytesjson.encode(spec.policy_file) if spec.policy_file else None,
        "restored_from": spec.restored_from,
        "telemetry": text_list(spec.telemetry),
        "limits": spec.limits.to_json(),
        "base": bytesjson.encode(spec.base) if spec.base else None,
        "shell": bytesjson.encode(spec.shell) if spec.shell else None,
        "first_snapshot": state.first_snapshot,
        "snapshot_id": state.snapshot_id,
        "inputs_digest": state.inputs_digest,
        "steps": state.steps,
        "fingerprints_digest": state.fingerprints_digest,
        "generation": state.generation,
        "paused": state.paused,
    }


def _from_json(fields: Fields) -> WorldState:
    if fields.integer("v") != _VERSION:
        raise fields.wrong("v", str(_VERSION))
    spec = WorldSpec(
        world_id=fields.text("world_id"),
        session_id=fields.text("session_id"),
        trace_id=fields.text("trace_id"),
        agent_id=fields.text("agent_id"),
        request_id=fields.text("request_id"),
        profile=fields.text("profile"),
        project=project_from_json(fields, "project"),
        cwd=opt_bytes(fields, "cwd") or b"/",
        home=opt_bytes(fields, "home") or b"/",
        login_home=opt_bytes(fields, "login_home") or b"/",
        env=env_from_json(fields, "env"),
        user=fields.text("user"),
        network=texts(fields, "network"),
        hostname=fields.text("hostname"),
        labels=text_pairs(fields, "labels"),
        keep=fields.flag("keep"),
        created_at=fields.number("created_at"),
        expires_at=fields.opt_number("expires_at"),
        idle_timeout_s=fields.opt_number("idle_timeout_s"),
        policy_file=opt_bytes(fields, "policy_file"),
        restored_from=fields.opt_text("restored_from"),
        telemetry=texts(fields, "telemetry") if fields.has("telemetry") else (),
        limits=Limits.from_json(fields.child("limits")) if fields.has("limits") else NO_LIMITS,
        base=(opt_bytes(fields, "base") if fields.has("base") else None) or b"",
        shell=(opt_bytes(fields, "shell") if fields.has("shell") else None) or b"",
    )
    return WorldState(
        spec=spec,
        first_snapshot=fields.text("first_snapshot"),
        snapshot_id=fields.text("snapshot_id"),
        inputs_digest=fields.opt_text("inputs_digest"),
        steps=fields.integer("steps"),
        fingerprints_digest=fields.opt_text("fingerprints_digest"),
        generation=fields.integer("generation", 0),
        paused=fields.flag("paused", default=False),
    )


def world_directory(worlds: Path, world_id: str) -> Path:
    """Where a world keeps its layers, execs and records."""
    return worlds / os.path.basename(world_id)


def layers_directory(directory: Path, generation: int) -> Path:
    """Where in a world's directory the layers of a generation, and its layout, are."""
    return directory if generation == 0 else directory / f"generation-{generation}"
