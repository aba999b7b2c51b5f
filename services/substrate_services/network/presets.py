"""What ``@name`` stands for in network rules: the hosts that a tool chain fetches from."""

from __future__ import annotations

HOST_NAME = "host"
_HTTPS = 443

PRESETS: dict[str, tuple[str, ...]] = {
    "python": ("pypi.org:443", "files.pythonhosted.org:443"),
    "npm": ("registry.npmjs.org:443", "registry.yarnpkg.com:443"),
    "go": ("proxy.golang.org:443", "sum.golang.org:443", "storage.googleapis.com:443"),
    "rust": (
        "crates.io:443",
        "index.crates.io:443",
        "static.crates.io:443",
        "static.rust-lang.org:443",
    ),
    "github": (
        "github.com:443",
        "github.com:22",
        "api.github.com:443",
        "codeload.github.com:443",
        "*.githubusercontent.com:443",
        "ssh.github.com:443",
    ),
}


def preset_of(name: str, port: int) -> str | None:
    """The preset that opens ``name:port``, with its ``@``; None where none does."""
    for preset, rules in PRESETS.items():
        for rule in rules:
            domain, _, of_port = rule.rpartition(":")
            fits = (
                name.endswith(domain.removeprefix("*"))
                if domain.startswith("*.")
                else name == domain
            )
            if fits and int(of_port) == port:
                return f"@{preset}"
    return None


def rule_for(name: str, port: int | None) -> str:
    """The rule that would open a name on a port; all of it where the port is not known."""
    if name == HOST_NAME:
        return f"{HOST_NAME}:{port or 'PORT'}"
    preset = preset_of(name, port or _HTTPS)
    if preset is not None:
        return preset
    where = f"[{name}]" if ":" in name else name
    return f"{where}:{port}" if port else where
