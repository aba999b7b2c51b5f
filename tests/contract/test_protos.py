"""Promises that the protos make to every language, held against their text and descriptors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from substrate_sdk._reasons import REASONS
from substrate_services.host.server import SERVICES

ROOT = Path(__file__).parents[2] / "protos"

METHODS = {
    f"{service.descriptor.name}.{method.name}": method
    for service in SERVICES
    for method in service.methods()
}
_RPC = re.compile(r"((?:^[ ]*//[^\n]*\n)+)[ ]*rpc (\w+)\(", re.MULTILINE)
_SERVICE = re.compile(r"^service (\w+) \{", re.MULTILINE)

# What is a path, an argument or a variable, by its name.
_BYTES = re.compile(
    r"argv|args|shell|cwd|exe|path|paths|.*_path|directory|project|target|renamed_from|"
    r"policy_file|against|unset_env"
)
_ENVIRONMENT = re.compile(r"env|.*_env")
# A field of that name which is another thing.
_OTHER_THINGS = {
    "substrate.common.v1alpha1.SecretRef.env": "names a variable that we set ourselves",
    "substrate.replay.v1alpha1.Override.unset_env": "a name, not a variable",
}


def _comments() -> dict[str, str]:
    found = {}
    for file in ROOT.rglob("*.proto"):
        text = file.read_text()
        for match in _RPC.finditer(text):
            service = [item[1] for item in _SERVICE.finditer(text, 0, match.start())][-1]
            found[f"{service}.{match[2]}"] = re.sub(r"^\s*// ?", "", match[1], flags=re.MULTILINE)
    return found


COMMENTS = _comments()


def _messages() -> Iterator[Descriptor]:
    seen: set[str] = set()
    waiting: list[Descriptor] = []
    for service in SERVICES:
        for method in service.methods():
            waiting += [method.input_type, method.output_type]
    while waiting:
        message = waiting.pop()
        if message.full_name in seen or not message.full_name.startswith("substrate."):
            continue
        seen.add(message.full_name)
        waiting += [field.message_type for field in message.fields if field.message_type]
        yield message


FIELDS = [field for message in _messages() for field in message.fields]


def test_every_rpc_was_found_in_the_text() -> None:
    assert set(METHODS) == set(COMMENTS)


def test_each_rpc_states_idempotency_errors_and_ordering() -> None:
    lacking = [
        f"{name}: {heading}"
        for name, comment in COMMENTS.items()
        for heading in ("Idempotent:", "Errors:", "Ordering:")
        if not re.search(rf"^{heading} \S", comment, re.MULTILINE)
    ]
    assert lacking == []


def test_each_error_that_an_rpc_names_is_in_the_table() -> None:
    codes = {code for reason in REASONS.values() for code in (reason.code, *reason.also)}
    wrong = []
    for name, comment in COMMENTS.items():
        text = comment.partition("Errors: ")[2].partition("Ordering: ")[0]
        for code, inside in re.findall(r"\b([A-Z][A-Z_]{4,})\b(?:\s*\(([^)]*)\))?", text):
            if code not in codes:
                wrong.append(f"{name}: {code} is no code")
            for reason in re.findall(r"\b[A-Z][A-Z_]{3,}\b", inside):
                known = REASONS.get(reason)
                if known is None or code not in (known.code, *known.also):
                    wrong.append(f"{name}: {code} ({reason}) is not in _reasons.py")
    assert wrong == []


def test_arguments_variables_and_paths_are_bytes() -> None:
    assert [field.full_name for field in FIELDS if not _is_exact(field)] == []


def _is_exact(field: FieldDescriptor) -> bool:
    if field.full_name in _OTHER_THINGS:
        return True
    if _ENVIRONMENT.fullmatch(field.name):
        variable = field.message_type.fields_by_name if field.message_type else {}
        return {"name", "value"} <= set(variable) and all(map(_is_bytes, variable.values()))
    if _BYTES.fullmatch(field.name):
        # Either bytes, or a message that holds nothing else (world.v1alpha1.Argv).
        return _is_bytes(field) or (
            field.message_type is not None and all(map(_is_bytes, field.message_type.fields))
        )
    return True


def _is_bytes(field: FieldDescriptor) -> bool:
    return bool(field.type == FieldDescriptor.TYPE_BYTES)


def test_what_creates_can_be_repeated() -> None:
    chosen = {"request_id", "exec_id", "shell_id", "name"}
    creates = re.compile(r"\w+\.(Create|Start|Open|Fork|RunExec|RunShell)")
    lacking = [
        name
        for name, method in METHODS.items()
        if creates.match(name) and not _names_in(method.input_type, depth=2) & chosen
    ]
    assert lacking == []


def _names_in(message: Descriptor, depth: int) -> set[str]:
    names = set(message.fields_by_name)
    if depth > 1:
        for field in message.fields:
            if field.message_type:
                names |= _names_in(field.message_type, depth - 1)
    return names


def test_lists_come_in_pages() -> None:
    lists = {name: method for name, method in METHODS.items() if ".List" in name}
    assert len(lists) > 5
    for name, method in lists.items():
        request = method.input_type.fields_by_name
        answer = method.output_type.fields_by_name
        assert request["page_size"].type == FieldDescriptor.TYPE_INT32, name
        assert request["page_token"].type == FieldDescriptor.TYPE_STRING, name
        assert answer["next_page_token"].type == FieldDescriptor.TYPE_STRING, name
