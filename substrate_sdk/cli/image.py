"""``substrate image import|ls|rm``: roots for worlds."""

from __future__ import annotations

import sys

from substrate_sdk.cli.arguments import Parser, open_substrate, print_json, print_text
from substrate_sdk.cli.failures import UsageError
from substrate_sdk.errors import SubstrateError

_USAGE = "write: substrate image import PATH [--name N] | ls | rm IMAGE…"


def main(args: list[str]) -> int:
    """Dispatch."""
    match args[1:2]:
        case ["import"]:
            return _import(args[2:])
        case ["ls" | "list"]:
            return _list(args[2:])
        case ["rm" | "remove"]:
            return _remove(args[2:])
        case ["-h" | "--help"]:
            print(f"usage: substrate image …; {_USAGE}")
            return 0
        case _:
            raise UsageError(_USAGE)


def _import(args: list[str]) -> int:
    parser = Parser("image import", "Import an OCI archive, a docker save, or a root tar.")
    parser.add_argument("path", metavar="PATH", help="the archive; gzip and zstd are fine")
    parser.add_argument("--name", metavar="N", default="", help="what to call it")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        try:
            image = sub.images.add(options.path, name=options.name)
        except OSError as error:
            if isinstance(error, SubstrateError):
                raise
            raise SubstrateError(f"cannot read {options.path!r}: {error.strerror}") from error
    if options.json:
        print_json(image.to_json())
    else:
        print(" ".join((image.digest, *image.names)))
    return 0


def _list(args: list[str]) -> int:
    parser = Parser("image ls", "List the images of the host.")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        images = sub.images.list()
    if options.json:
        print_json({"images": [image.to_json() for image in images]})
        return 0
    from substrate_sdk.cli.text import Style, table

    rows = [["IMAGE", "SIZE", "IMPORTED", "NAMES"]]
    rows += [
        [
            image.digest[7:19],
            f"{image.size_bytes / 1_000_000:.1f} MB",
            "" if image.imported_at is None else f"{image.imported_at.astimezone():%Y-%m-%d %H:%M}",
            " ".join(image.names),
        ]
        for image in images
    ]
    print_text(table(rows, Style(sys.stdout)))
    return 0


def _remove(args: list[str]) -> int:
    parser = Parser("image rm", "Remove images, or names of images.")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a name or digest")
    options = parser.parse_args(args)
    with open_substrate(options) as sub:
        for image in options.images:
            sub.images.remove(image)
    if options.json:
        print_json({"removed": list(options.images)})
    return 0
