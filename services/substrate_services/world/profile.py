"""The ``workspace`` profile: what of the host a world shows (DESIGN §5).

The home is an allow-list: empty but for named toolchain and configuration paths. A deny list
would leak what nobody thought of, and what is created after the world has started.
"""

from __future__ import annotations

import glob
import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import dataclass

from substrate_services.world.base_mounts import is_below
from substrate_services.world.project import CREDENTIALS

# Directories below the home that hold programs, not secrets. Shown copy-on-write.
HOME_TOOLCHAINS = (
    b".pyenv",
    b".rbenv",
    b".nodenv",
    b".nvm",
    b".volta",
    b".asdf",
    b".local/bin",
    b".local/lib",
    b".local/share/mise",
    b".local/share/pnpm",
    b".local/share/uv",
    b".local/share/pipx",
    b".cargo/bin",
    b".cargo/registry",
    b".rustup",
    b".deno/bin",
    b".bun/bin",
    b".sdkman",
    b".m2/repository",
    b"go/bin",
    b"go/pkg",
    b"miniconda3",
    b"anaconda3",
)
# Copied, after credentials are taken out of them.
HOME_GIT_CONFIG = (b".gitconfig", b".config/git/config")
_GIT_SECTIONS_KEPT = frozenset(
    b"user core init alias color diff merge pull push rebase commit branch fetch log "
    b"safe advice column format help i18n pager rerere status submodule tag feature".split()
)

SYSTEM_SECRETS_FILES = (
    b"/etc/shadow",
    b"/etc/shadow-",
    b"/etc/gshadow",
    b"/etc/gshadow-",
    b"/etc/sudoers",
    b"/etc/krb5.keytab",
    b"/etc/docker/key.json",
    b"/etc/security/opasswd",
)
SYSTEM_SECRETS_GLOBS = (b"/etc/ssh/ssh_host_*_key",)
SYSTEM_SECRETS_DIRS = (
    b"/etc/ssl/private",
    b"/etc/sudoers.d",
    b"/etc/wireguard",
    b"/etc/openvpn",
    b"/etc/kubernetes",
    b"/etc/NetworkManager/system-connections",
    b"/var/lib/docker",
    b"/var/lib/containerd",
    b"/var/lib/containers",
    b"/var/lib/kubelet",
    b"/var/lib/substrate",
    b"/var/spool/cron",
    b"/var/lib/sss",
    b"/var/lib/systemd/credential.secret",
)

# Variables that a caller's environment may bring into a world unasked. Names only: values that
# are credentials (AWS_*, *_TOKEN) have no name here.
ENV_ALLOWED = frozenset(
    b"PATH LANG LANGUAGE TERM COLORTERM NO_COLOR FORCE_COLOR CLICOLOR TZ COLUMNS LINES EDITOR "
    b"VISUAL PAGER SHELL USER LOGNAME HOME PWD VIRTUAL_ENV CONDA_PREFIX CONDA_DEFAULT_ENV "
    b"PYENV_ROOT PYENV_VERSION PYTHONPATH PYTHONHASHSEED PYTHONDONTWRITEBYTECODE "
    b"PYTHONUNBUFFERED PYTHONIOENCODING PYTHONUTF8 NODE_PATH NODE_ENV NVM_DIR NVM_BIN GOPATH "
    b"GOROOT GOFLAGS CARGO_HOME RUSTUP_HOME RUST_BACKTRACE JAVA_HOME M2_HOME CC CXX CFLAGS "
    b"CXXFLAGS LDFLAGS MAKEFLAGS PKG_CONFIG_PATH SOURCE_DATE_EPOCH CI".split()
)
_ENV_ALLOWED_PREFIXES = (b"LC_",)
DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Mask:
    """A place of the host that a world does not show, and what a user can do about it."""

    path: bytes
    is_dir: bool
    rule: str
    fix: str


def allowed_env(caller: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """What of the caller's environment a world gets unasked."""
    return {
        name: value
        for name, value in caller.items()
        if name in ENV_ALLOWED or name.startswith(_ENV_ALLOWED_PREFIXES)
    }


def system_masks(
    substrate_home: bytes, emptied: tuple[bytes, ...], home: bytes
) -> tuple[Mask, ...]:
    """Everything outside the home that stays hidden; only what exists on this host."""
    hidden_fix = (
        "system secrets are never shown in a world; give the command what it needs in its "
        "environment, or as a file in the project"
    )
    masks = [
        Mask(path, False, "system-secrets", hidden_fix)
        for path in (*SYSTEM_SECRETS_FILES, *_expand(SYSTEM_SECRETS_GLOBS))
        if os.path.lexists(path)
    ]
    masks += [
        Mask(path, os.path.isdir(path), "system-secrets", hidden_fix)
        for path in SYSTEM_SECRETS_DIRS
        if os.path.lexists(path)
    ]
    masks.append(
        Mask(
            substrate_home,
            True,
            "substrate-home",
            "the recorder's own files are never shown in a world; read them with `substrate trace`",
        )
    )
    others_fix = "other users' homes are never shown; copy what is needed into the project"
    masks += [
        Mask(path, True, "other-homes", others_fix)
        for path in (b"/root", b"/home")
        if os.path.isdir(path) and path != home and path not in emptied
    ]
    masks += [
        Mask(path, os.path.isdir(path), "other-homes", others_fix)
        for path in _credentials_elsewhere()
    ]
    return tuple(masks)


def _credentials_elsewhere() -> list[bytes]:
    """Keys and tokens of service accounts, whose homes lie among programs and data.

    Such a home (/var/lib/postgresql, /srv/ci) may be what a command works on, so only what is
    known to hold credentials is hidden. A deny list: the homes of people are not shown at all.
    """
    homes = {os.fsencode(entry.pw_dir) for entry in pwd.getpwall()}
    return sorted(
        path
        for home in homes
        if home not in (b"/", b"") and not is_below(home, (b"/root", b"/home"))
        for name in (*CREDENTIALS, b".netrc", b".git-credentials", b".pgpass", b".npmrc")
        if os.path.lexists(path := os.path.join(home, name))
    )


def toolchains(home: bytes) -> tuple[bytes, ...]:
    """Absolute paths below ``home`` that are shown: directories that exist and are no links."""
    found = (os.path.join(home, name) for name in HOME_TOOLCHAINS)
    return tuple(path for path in found if os.path.isdir(path) and not os.path.islink(path))


def clean_git_config(text: bytes) -> bytes:
    """A git configuration without the sections that can hold or fetch credentials.

    ``[credential]``, ``[http]`` (``extraHeader``), ``[url]`` (``insteadOf`` with a token) and
    ``[include]`` go; the sections in ``_GIT_SECTIONS_KEPT`` stay. Format: git-config(1).
    """
    kept: list[bytes] = []
    keep = False
    for line in text.splitlines(keepends=True):
        header = re.match(rb"\s*\[\s*([A-Za-z0-9.-]+)", line)
        if header is not None:
            keep = header.group(1).split(b".")[0].lower() in _GIT_SECTIONS_KEPT
        if keep:
            kept.append(line)
    return b"".join(kept)


def _expand(patterns: tuple[bytes, ...]) -> list[bytes]:
    return [path for pattern in patterns for path in sorted(glob.glob(pattern))]
