"""Image archives, made by hand."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import zstandard

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]

#: A member: its content; None for a directory; "-> X" for a link, "= X" for a hard link.
Members = Sequence[tuple[str, bytes | str | None] | tarfile.TarInfo]


def tar(members: Members) -> bytes:
    """An archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member, io.BytesIO(bytes(member.size)))
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = 0o755, 1_000_000_000
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                kind, _, info.linkname = content.partition(" ")
                info.type = {"->": tarfile.SYMTYPE, "=": tarfile.LNKTYPE}[kind]
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    return out.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def config_of(layers: Sequence[bytes], config: Mapping[str, object], architecture: str) -> bytes:
    return json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(x)}" for x in layers]},
        }
    ).encode()


def oci(
    path: Path,
    layers: Sequence[bytes],
    config: Mapping[str, object] | None = None,
    *,
    name: str = "",
    architectures: Sequence[str] = (ARCHITECTURE,),
    spoil: str = "",
) -> Path:
    """An OCI layout as a tar: layers of zstd and gzip, one after another.

    ``spoil`` is changed after it was named by its digest: "layer", "config" or "manifest".
    """
    blobs: dict[str, bytes] = {}

    def keep(data: bytes, kind: str = "") -> dict[str, object]:
        digest = sha256(data)
        blobs[digest] = data[:-1] + bytes([data[-1] ^ 1]) if kind and kind == spoil else data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    manifests = []
    for architecture in architectures:
        packed = [
            keep(
                gzip.compress(layer, mtime=0)
                if index % 2
                else zstandard.ZstdCompressor().compress(layer),
                "layer",
            )
            for index, layer in enumerate(layers)
        ]
        manifest = {
            "schemaVersion": 2,
            "config": keep(config_of(layers, config or {}, architecture), "config"),
            "layers": packed,
        }
        entry = keep(json.dumps(manifest).encode(), "manifest")
        entry["platform"] = {"os": "linux", "architecture": architecture}
        entry["annotations"] = {"org.opencontainers.image.ref.name": name} if name else {}
        manifests.append(entry)
    inner = keep(json.dumps({"schemaVersion": 2, "manifests": manifests}).encode())
    inner["mediaType"] = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "manifests": [inner]}).encode()
    path.write_bytes(
        tar(
            [
                ("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
                ("index.json", index),
                *((f"blobs/sha256/{digest}", data) for digest, data in blobs.items()),
            ]
        )
    )
    return path


def docker(path: Path, layers: Sequence[bytes], config: Mapping[str, object], tag: str) -> Path:
    """What ``docker save`` writes."""
    document = config_of(layers, config, ARCHITECTURE)
    names = [f"{sha256(layer)}/layer.tar" for layer in layers]
    listed = [{"Config": f"{sha256(document)}.json", "RepoTags": [tag], "Layers": names}]
    path.write_bytes(
        tar(
            [
                *zip(names, layers, strict=True),
                (f"{sha256(document)}.json", document),
                ("manifest.json", json.dumps(listed).encode()),
            ]
        )
    )
    return path
