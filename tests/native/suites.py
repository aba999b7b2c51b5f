"""Other programs' test suites, run with and without the preload library: the same must come of it.

A suite gives outcomes by name: a test's verdict, or a script's exit status and output. What differs
from one run to the next by itself (process ids, times, addresses, temporary names) is taken out,
and what differs between two runs *without* the library, or not twice, is left out of the
comparison, by name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from substrate_services.telemetry.segments import SEGMENT_VARIABLE, prepare_directory
from tests.native.recording import ROOT, compile_c, preload_library

BASH_TESTS = ROOT / "build" / "suites" / "bash" / "tests"
PYTHON = Path("/usr/bin/python3")

Outcomes = dict[str, str]
#: Runs a suite in a directory of its own with an environment.
Suite = Callable[[Path, dict[str, str]], Outcomes]

_CHANGING = (
    (re.compile(rb"0x[0-9a-f]{6,}"), b"0xADDRESS"),
    (re.compile(rb"\b\d+m[\d.]+s\b"), b"TIME"),
    (re.compile(rb"/tmp/[\w./-]+"), b"TEMPORARY"),
    (re.compile(rb"\b\d{3,}\b"), b"NUMBER"),
)


@dataclass
class Comparison:
    """How two runs compare."""

    same: int
    different: dict[str, tuple[str, str]]  # name: without, with
    unstable: list[str]  # differ without the library too, or only once
    segments: int  # files that the recorded run left: 0 says it was not recorded


def normalised(text: bytes) -> str:
    """Text without what changes by itself."""
    for pattern, name in _CHANGING:
        text = pattern.sub(name, text)
    return text.decode(errors="replace")


def compare(suite: Suite) -> Comparison:
    """Run a suite without the library and with it; where something differs, both once more."""
    with tempfile.TemporaryDirectory(prefix="sbsuite") as name:
        base = Path(name)

        def run(env: dict[str, str]) -> Outcomes:
            # The same path each time, for the sake of outputs that hold it.
            work = base / "work"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            return suite(work, {**os.environ, **env})

        segments = base / "seg"
        prepare_directory(segments)
        plain = run({})
        environment = {"LD_PRELOAD": str(preload_library()), SEGMENT_VARIABLE: str(segments)}
        recorded = run(environment)
        count = sum(1 for _ in segments.iterdir())
        names = {name for name in plain | recorded if plain.get(name) != recorded.get(name)}
        # A difference that the library makes, it makes again; some outputs hold the time of day.
        again = run({}) if names else {}
        recorded_again = run(environment) if names else {}
    unstable = sorted(
        name
        for name in names
        if plain.get(name) != again.get(name) or again.get(name) == recorded_again.get(name)
    )
    different = {
        name: (plain.get(name, "(absent)"), recorded.get(name, "(absent)"))
        for name in sorted(names.difference(unstable))
    }
    return Comparison(len(plain.keys() - names), different, unstable, count)


def python_suite(tests: Sequence[str], timeout_s: float = 900) -> Suite:
    """CPython's own tests (Debian: libpython3-testsuite), each case by its verdict."""

    def run(work: Path, env: dict[str, str]) -> Outcomes:
        report = work / "report.xml"
        subprocess.run(
            # Three at a time: most of what the quick ones do is wait.
            [PYTHON, "-m", "test", "-j3", "--junit-xml", report, "--tempdir", work, *tests],
            env={**env, "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=work,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
        )
        outcomes: Outcomes = {}
        for case in ET.parse(report).iter("testcase"):
            verdict = next((c.tag for c in case if c.tag != "system-out"), "passed")
            outcomes[case.get("name", "")] = verdict
        return outcomes

    return run


def bash_suite(tests: Sequence[str] = (), timeout_s: float = 120) -> Suite:
    """The own tests of bash, each by the whole of its output."""

    def run(work: Path, env: dict[str, str]) -> Outcomes:
        shutil.copytree(BASH_TESTS, work / "tests", symlinks=True)
        (work / "tmp").mkdir()
        names = tests or sorted(path.name[4:] for path in BASH_TESTS.glob("run-*"))
        own = {
            **env,
            "THIS_SH": "/bin/bash",
            "PATH": f"{work / 'tests'}:{env['PATH']}",
            "BASH_TSTOUT": str(work / "out"),
            "TMPDIR": str(work / "tmp"),
            "BUILD_DIR": str(work),
        }
        outcomes: Outcomes = {}
        for name in names:
            if name in ("all", "minimal", "gprof"):
                continue
            done = subprocess.run(
                ["/bin/sh", f"run-{name}"],
                cwd=work / "tests",
                env=own,
                check=False,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                timeout=timeout_s,
            )
            produced = (work / "out").read_bytes() if (work / "out").exists() else b""
            outcomes[name] = f"{done.returncode} {normalised(done.stdout + produced)}"
            (work / "out").unlink(missing_ok=True)
        return outcomes

    return run


def script_suite(command: Sequence[str], scripts: dict[str, str], timeout_s: float = 60) -> Suite:
    """Scripts by name, each by its exit status and both its outputs."""

    def run(work: Path, env: dict[str, str]) -> Outcomes:
        outcomes: Outcomes = {}
        for name, script in scripts.items():
            place = work / name
            place.mkdir()
            done = subprocess.run(
                [*command, script],
                cwd=place,
                env={**env, "HOME": str(place), "LC_ALL": "C.UTF-8"},
                check=False,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=timeout_s,
            )
            outcomes[name] = "\n".join(
                [str(done.returncode), normalised(done.stdout), normalised(done.stderr)]
            )
        return outcomes

    return run


_C_PROGRAMS = ("calls", "vforks", "threads", "mode", "forks")


def compiled_suite() -> Suite:
    """Programs of native/tests, built with gcc: what every call returned, and its errno."""

    def run(work: Path, env: dict[str, str]) -> Outcomes:
        outcomes: Outcomes = {}
        for name in _C_PROGRAMS:
            source = ROOT / "native" / "tests" / f"{name}.c"
            program = compile_c(source, work / f"{name}.program", "-ldl", "-lpthread")
            place = work / name
            place.mkdir()
            done = subprocess.run(
                [program], cwd=place, env=env, check=False, capture_output=True, timeout=60
            )
            text = re.sub(rb"(temp|dir)\w{6}", rb"\1XXXXXX", done.stdout)
            outcomes[name] = f"{done.returncode} {text.decode()}"
        return outcomes

    return run


GIT_SCRIPTS = {
    "history": """
export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z'
git config --global user.name T; git config --global user.email t@example.invalid
git init -q -b main r; cd r
for i in 1 2 3 4 5 6 7 8 9; do echo $i > f$i; git add .; git commit -qm c$i; done
git log --format=%H; git branch side HEAD~3; git checkout -q side; echo x > f9; git add .
git commit -qm side; git merge main; git status --short; git merge --abort; git rebase main
git rebase --abort; git cherry-pick main~1; git stash list; git gc -q; git fsck
git clone -q . ../c; cd ../c; git log --oneline --all | sort; git worktree add -q ../w HEAD~1
git -C ../w rev-parse HEAD; git grep -n x; git diff HEAD~1 --stat; git archive HEAD | tar -t
git bundle create ../b HEAD 2>/dev/null; git bundle verify ../b; git nonsense
git -C /missing status
""",
}

NODE_SCRIPTS = {
    "files": """
const fs = require('fs'), path = require('path');
fs.mkdirSync('a/b/c', {recursive: true}); fs.writeFileSync('a/x', 'hello');
fs.renameSync('a/x', 'a/y'); fs.symlinkSync('y', 'a/z'); fs.copyFileSync('a/y', 'a/w');
for (const f of ['a/y', 'missing', 'a/z/q']) { try { console.log(fs.readFileSync(f, 'utf8')); }
  catch (e) { console.log(e.code, e.errno, e.syscall, e.path); } }
console.log(fs.readdirSync('a').sort(), fs.statSync('a/y').size, fs.realpathSync('a/z').slice(-3));
fs.promises.readdir('.').then(async l => { console.log(l);
  await fs.promises.rm('a', {recursive: true}); console.log(fs.existsSync('a')); });
""",
    "children": """
const c = require('child_process');
console.log(c.execSync('echo hi; exit 0').toString(), c.spawnSync('sh', ['-c', 'exit 3']).status);
try { c.execFileSync('/missing'); } catch (e) { console.log(e.code, e.errno, e.syscall); }
const p = c.spawn('cat', [], {cwd: '/'}); p.stdout.on('data', d => console.log(String(d)));
p.on('exit', (code, sig) => console.log('exit', code, sig)); p.stdin.end('through');
const k = c.spawn('sleep', ['60']); k.on('exit', (code, sig) => console.log('killed', code, sig));
setTimeout(() => k.kill('SIGKILL'), 100);
""",
    "network": """
const net = require('net');
const s = net.createServer(q => { q.on('data', d => q.end('echo ' + d)); });
s.listen(0, '127.0.0.1', () => {
  const c = net.connect(s.address().port, '127.0.0.1', () => c.write('x'));
  c.on('data', d => console.log(String(d))); c.on('close', () => { s.close();
  net.connect(1, '127.0.0.1').on('error', e => console.log(e.code, e.syscall)); }); });
""",
    "workers": """
const { Worker } = require('worker_threads'); let left = 4, sum = 0;
const code = `const fs = require('fs'), {parentPort} = require('worker_threads');
  let n = 0;
  for (let j = 0; j < 200; j++) { try { fs.readFileSync('/missing' + j); } catch { n++; } }
  parentPort.postMessage(n);`;
for (let i = 0; i < 4; i++)
  new Worker(code, {eval: true}).on('message', n => {
    sum += n; if (--left == 0) console.log(sum); });
""",
}
