"""The values inside a step's line: file states, changes, commands, actions, decisions.

Each pair ``x_to_json`` / ``x_from_json`` is exact: what goes in comes back equal. Fields that
hold their default are left out where there may be thousands of them (changes, file states), and
readers put the default back. Unknown fields, written by a newer minor version, are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, get_args

from substrate_services.journal import bytesjson
from substrate_services.journal.jsontypes import Fields, JsonObject, JsonValue, canonical_bytes
from substrate_services.journal.schema import (
    Action,
    Blocked,
    Change,
    ChangeKind,
    ChangeScope,
    Command,
    Coverage,
    CoverageState,
    Decision,
    DecisionAction,
    FileFingerprint,
    FileKind,
    FileState,
    LedgerSource,
    PolicyMode,
    Process,
    ShellStep,
)

_FILE_KINDS: tuple[FileKind, ...] = get_args(FileKind)
_CHANGE_KINDS: tuple[ChangeKind, ...] = get_args(ChangeKind)
_CHANGE_SCOPES: tuple[ChangeScope, ...] = get_args(ChangeScope)
_DECISION_ACTIONS: tuple[DecisionAction, ...] = get_args(DecisionAction)
_POLICY_MODES: tuple[PolicyMode, ...] = get_args(PolicyMode)
_COVERAGE_STATES: tuple[CoverageState, ...] = get_args(CoverageState)
_LEDGER_SOURCES: tuple[LedgerSource, ...] = get_args(LedgerSource)

_ChoiceT = TypeVar("_ChoiceT", bound=str)


def choice(fields: Fields, key: str, allowed: tuple[_ChoiceT, ...]) -> _ChoiceT:
    """The field's value, which must be one of ``allowed``.

    A new value of such a field is a new major version of the schema, because a reader that does
    not know a termination reason cannot tell what happened.
    """
    text = fields.text(key)
    for known in allowed:
        if text == known:
            return known
    raise fields.wrong(key, f"one of {', '.join(allowed)}")


def texts(fields: Fields, key: str) -> tuple[str, ...]:
    """The field's array of strings."""
    found: list[str] = []
    for item in fields.items(key):
        if not isinstance(item, str):
            raise fields.wrong(key, "an array of strings")
        found.append(item)
    return tuple(found)


def text_list(values: Sequence[str]) -> list[JsonValue]:
    """A JSON array of strings (lists are invariant, so a copy with the wider type)."""
    return list(values)


def byte_list(values: Sequence[bytes]) -> list[JsonValue]:
    """A JSON array of byte strings."""
    return [bytesjson.encode(value) for value in values]


def byte_items(fields: Fields, key: str) -> tuple[bytes, ...]:
    """The field's array of byte strings."""
    return tuple(bytesjson.decode(item, fields.where(key)) for item in fields.items(key))


def opt_bytes(fields: Fields, key: str) -> bytes | None:
    """The field's byte string, None where it is missing or null."""
    if not fields.has(key):
        return None
    return bytesjson.decode(fields.value[key], fields.where(key))


def pairs_to_json(pairs: Sequence[tuple[str, JsonValue]]) -> JsonValue:
    """An object, which reads best; an array of pairs where a name comes twice."""
    as_object = dict(pairs)
    if len(as_object) == len(pairs):
        return as_object
    return [[name, value] for name, value in pairs]


def pairs_from_json(fields: Fields, key: str) -> list[tuple[JsonValue, JsonValue]]:
    """What :func:`pairs_to_json` or :func:`env_to_json` wrote; [] where missing."""
    value = fields.value.get(key)
    if value is None:
        return []
    if isinstance(value, dict):
        return list(value.items())
    pairs: list[tuple[JsonValue, JsonValue]] = []
    for item in fields.items(key):
        if not isinstance(item, list) or len(item) != 2:
            raise fields.wrong(key, "an object or an array of [name, value]")
        pairs.append((item[0], item[1]))
    return pairs


def env_to_json(env: Sequence[tuple[bytes, bytes]]) -> JsonValue:
    """An environment: an object, or an array of pairs where a name is twice or not UTF-8."""
    names = [bytesjson.encode(name) for name, _ in env]
    values = [bytesjson.encode(value) for _, value in env]
    plain = [name for name in names if isinstance(name, str)]
    if len(plain) == len(env) == len(set(plain)):
        return dict(zip(plain, values, strict=True))
    return [[name, value] for name, value in zip(names, values, strict=True)]


def env_from_json(fields: Fields, key: str) -> tuple[tuple[bytes, bytes], ...]:
    """The environment that :func:`env_to_json` wrote, () where missing. Raises LineError."""
    where = fields.where(key)
    return tuple(
        (bytesjson.decode(name, where), bytesjson.decode(value, where))
        for name, value in pairs_from_json(fields, key)
    )


def int_pairs(fields: Fields, key: str) -> tuple[tuple[str, int], ...]:
    """The field's integers by name, in the order written."""
    pairs: list[tuple[str, int]] = []
    for name, value in pairs_from_json(fields, key):
        if not isinstance(name, str) or not isinstance(value, int) or isinstance(value, bool):
            raise fields.wrong(key, "integers by name")
        pairs.append((name, value))
    return tuple(pairs)


def text_pairs(fields: Fields, key: str) -> tuple[tuple[str, str], ...]:
    """The field's strings by name, in the order written."""
    pairs: list[tuple[str, str]] = []
    for name, value in pairs_from_json(fields, key):
        if not isinstance(name, str) or not isinstance(value, str):
            raise fields.wrong(key, "strings by name")
        pairs.append((name, value))
    return tuple(pairs)


def _add(target: JsonObject, name: str, value: int | str | None, default: int | str | None) -> None:
    if value != default:
        target[name] = value


# --- files -------------------------------------------------------------------------------------


def file_state_to_json(state: FileState) -> JsonObject:
    """The file state as a JSON object."""
    out: JsonObject = {"kind": state.kind, "mode": state.mode}
    _add(out, "size", state.size, 0)
    _add(out, "digest", state.digest, None)
    if state.target is not None:
        out["target"] = bytesjson.encode(state.target)
    _add(out, "uid", state.uid, 0)
    _add(out, "gid", state.gid, 0)
    _add(out, "mtime_ns", state.mtime_ns, 0)
    _add(out, "rdev", state.rdev, 0)
    return out


def file_state_from_json(value: JsonValue, where: str = "file state") -> FileState:
    """The file state that :func:`file_state_to_json` wrote. Raises LineError."""
    fields = Fields(value, where)
    return FileState(
        kind=choice(fields, "kind", _FILE_KINDS),
        mode=fields.integer("mode"),
        size=fields.integer("size", 0),
        digest=fields.opt_text("digest"),
        target=opt_bytes(fields, "target"),
        uid=fields.integer("uid", 0),
        gid=fields.integer("gid", 0),
        mtime_ns=fields.integer("mtime_ns", 0),
        rdev=fields.integer("rdev", 0),
    )


def change_to_json(change: Change) -> JsonObject:
    """The change as a JSON object."""
    out: JsonObject = {
        "path": bytesjson.encode(change.path),
        "kind": change.kind,
        "scope": change.scope,
    }
    if change.before is not None:
        out["before"] = file_state_to_json(change.before)
    if change.after is not None:
        out["after"] = file_state_to_json(change.after)
    if change.renamed_from is not None:
        out["renamed_from"] = bytesjson.encode(change.renamed_from)
    return out


def change_from_json(value: JsonValue, where: str = "change") -> Change:
    """The change that :func:`change_to_json` wrote. Raises LineError."""
    fields = Fields(value, where)

    def state(key: str) -> FileState | None:
        if not fields.has(key):
            return None
        return file_state_from_json(fields.value[key], fields.where(key))

    return Change(
        path=bytesjson.decode(fields.value.get("path"), fields.where("path")),
        kind=choice(fields, "kind", _CHANGE_KINDS),
        scope=choice(fields, "scope", _CHANGE_SCOPES),
        before=state("before"),
        after=state("after"),
        renamed_from=opt_bytes(fields, "renamed_from"),
    )


def file_fingerprint_to_json(fingerprint: FileFingerprint) -> JsonObject:
    """The fingerprint as a JSON object."""
    out: JsonObject = {
        "path": bytesjson.encode(fingerprint.path),
        "ino": fingerprint.ino,
        "mtime_ns": fingerprint.mtime_ns,
        "ctime_ns": fingerprint.ctime_ns,
        "size": fingerprint.size,
        "mode": fingerprint.mode,
        "uid": fingerprint.uid,
        "gid": fingerprint.gid,
    }
    if fingerprint.target is not None:
        out["target"] = bytesjson.encode(fingerprint.target)
    return out


def file_fingerprints_text(fingerprints: Iterable[FileFingerprint]) -> bytes:
    """The canonical text of a list of fingerprints: in half the time, as there may be many."""
    text = []
    for item in fingerprints:
        path = _canonical_text(item.path)
        target = f',"target":{_canonical_text(item.target)}' if item.target is not None else ""
        text.append(
            f'{{"ctime_ns":{item.ctime_ns},"gid":{item.gid},"ino":{item.ino},"mode":{item.mode},'
            f'"mtime_ns":{item.mtime_ns},"path":{path},"size":{item.size}{target},'
            f'"uid":{item.uid}}}'
        )
    return f"[{','.join(text)}]".encode()


def _canonical_text(data: bytes) -> str:
    return canonical_bytes(bytesjson.encode(data)).decode()


def file_fingerprint_from_json(value: JsonValue, where: str = "fingerprint") -> FileFingerprint:
    """The fingerprint that :func:`file_fingerprint_to_json` wrote. Raises LineError."""
    fields = Fields(value, where)
    return FileFingerprint(
        path=bytesjson.decode(fields.value.get("path"), fields.where("path")),
        ino=fields.integer("ino"),
        mtime_ns=fields.integer("mtime_ns"),
        ctime_ns=fields.integer("ctime_ns"),
        size=fields.integer("size"),
        mode=fields.integer("mode"),
        uid=fields.integer("uid"),
        gid=fields.integer("gid"),
        target=opt_bytes(fields, "target"),
    )


# --- what was asked, and what was decided ------------------------------------------------------


def command_to_json(command: Command) -> JsonObject:
    """The command as a JSON object."""
    return {
        "argv": byte_list(command.argv),
        "shell": None if command.shell is None else bytesjson.encode(command.shell),
    }


def command_from_json(value: JsonValue, where: str = "command") -> Command:
    """The command that :func:`command_to_json` wrote. Raises LineError."""
    fields = Fields(value, where)
    return Command(argv=byte_items(fields, "argv"), shell=opt_bytes(fields, "shell"))


def action_to_json(action: Action) -> JsonObject:
    """All of the action, exactly; its digest is another encoding's (:mod:`.action`)."""
    return {
        "command": command_to_json(action.command),
        "cwd": bytesjson.encode(action.cwd),
        "env": env_to_json(action.env),
        "umask": action.umask,
        "user": action.user,
        "stdin_digest": action.stdin_digest,
        "snapshot_id": action.snapshot_id,
        # 5 and 5.0 are one value and read as one.
        "timeout_s": None if action.timeout_s is None else float(action.timeout_s),
        "pty": action.pty,
        "pty_size": list(action.pty_size) if action.pty_size is not None else None,
        "profile": action.profile,
        "network": text_list(action.network),
        "limits": pairs_to_json(action.limits),
        "policy_hash": action.policy_hash,
        "first_pid": action.first_pid,
    }


def action_from_json(value: JsonValue, where: str = "action") -> Action:
    """The action that :func:`action_to_json` wrote. Raises LineError."""
    fields = Fields(value, where)
    return Action(
        command=command_from_json(fields.value.get("command"), fields.where("command")),
        cwd=bytesjson.decode(fields.value.get("cwd"), fields.where("cwd")),
        env=env_from_json(fields, "env"),
        umask=fields.integer("umask"),
        user=fields.text("user"),
        stdin_digest=fields.opt_text("stdin_digest"),
        snapshot_id=fields.opt_text("snapshot_id"),
        timeout_s=fields.opt_number("timeout_s"),
        pty=fields.flag("pty", False),
        pty_size=_pty_size(fields),
        profile=fields.text("profile", "workspace"),
        network=texts(fields, "network"),
        limits=int_pairs(fields, "limits"),
        policy_hash=fields.text("policy_hash", ""),
        first_pid=fields.opt_integer("first_pid"),
    )


def _pty_size(fields: Fields) -> tuple[int, int] | None:
    match fields.value.get("pty_size"):
        case None:
            return None
        case [int(rows), int(columns)]:
            return rows, columns
        case _:
            raise fields.wrong("pty_size", "[rows, columns]")


def shell_step_to_json(step: ShellStep | None) -> JsonObject:
    """The field that a command of a shell has, and no other step."""
    if step is None:
        return {}
    return {"shell": {"shell_id": step.shell_id, "number": step.number}}


def shell_step_from_json(fields: Fields) -> ShellStep | None:
    """The field of a step; None where it has none."""
    if not fields.has("shell"):
        return None
    shell = fields.child("shell")
    return ShellStep(shell.text("shell_id"), shell.integer("number"))


def decision_to_json(decision: Decision) -> JsonObject:
    """The decision as a JSON object."""
    return {
        "action": decision.action,
        "reason": decision.reason,
        "restrictions": [],
        "rule_id": decision.rule_id,
        "source": decision.source,
        "decider": decision.decider,
        "mode": decision.mode,
        "enforced": decision.enforced,
        "policy_hash": decision.policy_hash,
    }


def decision_from_json(value: JsonValue, where: str = "policy_decision") -> Decision:
    """The decision that :func:`decision_to_json` wrote. Raises LineError."""
    fields = Fields(value, where)
    return Decision(
        action=choice(fields, "action", _DECISION_ACTIONS),
        rule_id=fields.text("rule_id"),
        reason=fields.text("reason"),
        mode=choice(fields, "mode", _POLICY_MODES),
        policy_hash=fields.text("policy_hash"),
        source=fields.text("source", ""),
        decider=fields.text("decider", "policy"),
        enforced=fields.flag("enforced", True),
    )


# --- what was seen -----------------------------------------------------------------------------


def coverage_to_json(coverage: Coverage) -> JsonObject:
    """The coverage as a JSON object."""
    out: JsonObject = {
        "state": coverage.state,
        "reasons": text_list(coverage.reasons),
        "processes": coverage.processes,
        "covered": coverage.covered,
        "events": coverage.events,
        "lost": coverage.lost,
    }
    _add(out, "ledger", coverage.ledger, None)
    if coverage.classes_off:
        out["classes_off"] = text_list(coverage.classes_off)
    return out


def coverage_from_json(value: JsonValue, where: str = "coverage") -> Coverage:
    """The coverage that :func:`coverage_to_json` wrote. Raises LineError."""
    fields = Fields(value, where)
    return Coverage(
        state=choice(fields, "state", _COVERAGE_STATES),
        reasons=texts(fields, "reasons"),
        processes=fields.integer("processes", 0),
        covered=fields.integer("covered", 0),
        events=fields.integer("events", 0),
        lost=fields.integer("lost", 0),
        ledger=choice(fields, "ledger", _LEDGER_SOURCES) if fields.has("ledger") else None,
        classes_off=texts(fields, "classes_off") if fields.has("classes_off") else (),
    )


def blocked_to_json(blocked: Blocked) -> JsonObject:
    """The blocked access as a JSON object."""
    return {
        "what": blocked.what,
        "layer": blocked.layer,
        "rule": blocked.rule,
        "fix": blocked.fix,
    }


def blocked_from_json(value: JsonValue, where: str = "blocked") -> Blocked:
    """The blocked access that :func:`blocked_to_json` wrote. Raises LineError."""
    fields = Fields(value, where)
    return Blocked(
        what=fields.text("what"),
        layer=fields.text("layer"),
        rule=fields.text("rule"),
        fix=fields.text("fix"),
    )


def process_to_json(process: Process) -> JsonObject:
    """The process as a JSON object."""
    out: JsonObject = {
        "span_id": process.span_id,
        "parent_span": process.parent_span_id,
        "pid": process.pid,
        "ppid": process.ppid,
        "exec_no": process.exec_no,
        "start_ns": process.start_ns,
        "end_ns": process.end_ns,
        "argv": byte_list(process.argv),
        "exe": bytesjson.encode(process.exe),
        "cwd": bytesjson.encode(process.cwd),
        "exit_code": process.exit_code,
        "signal": process.signal,
    }
    _add(out, "coverage", process.coverage, "full")
    _add(out, "coverage_reason", process.coverage_reason, "")
    _add(out, "events", process.events, 0)
    return out


def process_from_json(value: JsonValue, where: str = "process") -> Process:
    """The process that :func:`process_to_json` wrote. Raises LineError."""
    fields = Fields(value, where)
    coverage: CoverageState = "full"
    if fields.has("coverage"):
        coverage = choice(fields, "coverage", _COVERAGE_STATES)
    return Process(
        span_id=fields.text("span_id"),
        parent_span_id=fields.text("parent_span"),
        pid=fields.integer("pid"),
        ppid=fields.integer("ppid"),
        exec_no=fields.integer("exec_no"),
        start_ns=fields.integer("start_ns"),
        end_ns=fields.opt_integer("end_ns"),
        argv=byte_items(fields, "argv"),
        exe=bytesjson.decode(fields.value.get("exe"), fields.where("exe")),
        cwd=bytesjson.decode(fields.value.get("cwd"), fields.where("cwd")),
        exit_code=fields.opt_integer("exit_code"),
        signal=fields.opt_integer("signal"),
        coverage=coverage,
        coverage_reason=fields.text("coverage_reason", ""),
        events=fields.integer("events", 0),
    )
