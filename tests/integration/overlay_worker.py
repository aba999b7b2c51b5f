"""Mounts an overlay in a mount namespace of its own, does what it is told, lists the result.

Run as ``unshare --mount --propagation private python overlay_worker.py LOWER UPPER WORK MERGED``
with a JSON list of operations on standard input. Prints the merged tree before and after, as
``{path: [type, mode, content or link target]}``.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import stat
import sys

Listing = dict[str, list[object]]


def main() -> None:
    lower, upper, work, merged = sys.argv[1:5]
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"lowerdir={lower},upperdir={upper},workdir={work},redirect_dir=on,index=on"
    if libc.mount(b"overlay", merged.encode(), b"overlay", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount overlay")
    before = listing(merged)
    for operation in json.load(sys.stdin):
        apply(merged, operation)
    json.dump({"before": before, "after": listing(merged)}, sys.stdout)


def apply(root: str, operation: list[str]) -> None:  # noqa: C901 # a table would say no more
    """Do one operation; one that the tree does not allow is left out."""
    verb, *names = operation
    paths = [os.path.join(root, name) for name in names]
    try:
        if verb == "write":
            with open(paths[0], "a") as file:
                file.write("more\n")
        elif verb == "truncate":
            with open(paths[0], "w") as file:
                file.write("new\n")
        elif verb == "remove":
            if os.path.isdir(paths[0]) and not os.path.islink(paths[0]):
                shutil.rmtree(paths[0])
            else:
                os.remove(paths[0])
        elif verb == "rename":
            os.rename(paths[0], paths[1])
        elif verb == "mkdir":
            os.mkdir(paths[0])
        elif verb == "symlink":
            os.symlink("somewhere", paths[0])
        elif verb == "chmod":
            os.chmod(paths[0], 0o700)
        elif verb == "note":
            os.setxattr(paths[0], "user.note", names[0].encode())
        elif verb == "hole":
            os.truncate(paths[0], 100_000)
        elif verb == "link":
            os.link(paths[0], paths[1], follow_symlinks=False)
        elif verb == "touch":
            os.utime(paths[0], (1, 1))
    except OSError:
        pass


def listing(root: str) -> Listing:
    found: Listing = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content = None
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path) as file:
                    content = file.read()
            found[os.path.relpath(path, root)] = [
                stat.S_IFMT(status.st_mode),
                stat.S_IMODE(status.st_mode),
                content,
                []
                if stat.S_ISLNK(status.st_mode)
                else [
                    os.getxattr(path, name).decode()
                    for name in sorted(os.listxattr(path))
                    if name.startswith("user.") and not name.startswith("user.overlay.")
                ],
            ]
    return found


if __name__ == "__main__":
    main()
