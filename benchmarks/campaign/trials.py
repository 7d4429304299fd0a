"""Runs commands with prepared input, each in a process of its own, and judges how they end.

The package is imported once; every command runs in a fork, so that a crash, a hang or a lot of memory is seen and harms
nothing. The process that forks must not have computed anything with JAX.
"""

import dataclasses
import hashlib
import importlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

COMMANDS = {  # what `Trial.command` names -> module
    "train": "bcss_jax.main",
    "evaluate": "bcss_jax.evaluate",
    "segment": "bcss_jax.segment",
    "export": "bcss_jax.export",
    "data": "bcss_jax.data.__main__",
    "nnunet": "bcss_jax.nnunet.__main__",
}
DOCUMENTED = (0, 2, 3, 4, 5, 6, 75)  # exit codes
MOST_MEMORY = 2 << 30  # bytes of the process and its children, beyond what importing takes
ONE_LINE = re.compile(r"^(error|note): .+", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Trial:
    """A command with prepared input, and how it has to end.

    Attributes:
      part: of the campaign, for example "contract".
      name: of the row in the table, for example "B05 mask is RGB".
      command: a key of `COMMANDS`.
      arguments: of the command. `{work}` stands for the trial's folder, `{out}` for a path in it that does not exist.
      codes: exit codes that are right.
      says: regular expression that the printed text must contain.
      prepare: called with the trial's folder, writes the input.
      check: called with the trial's folder after the command; returns what is wrong, or "".
      limit: seconds after which the command counts as hanging.
      may_change: paths in the trial's folder, relative, under which files may be made or changed besides `{out}`.
    """

    part: str
    name: str
    command: str
    arguments: tuple[str, ...]
    codes: tuple[int, ...]
    says: str = ""
    prepare: Callable[[Path], None] | None = None
    check: Callable[[Path], str] | None = None
    limit: float = 60.0
    may_change: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
      part: as in `Trial`.
      name: as in `Trial`.
      code: exit code; negative: the number of the signal that ended the process.
      line: the line of the error, or the last line that was printed.
      seconds: that the command ran.
      faults: what is wrong; empty if the trial was survived.
    """

    part: str
    name: str
    code: int
    line: str
    seconds: float
    faults: tuple[str, ...]


def load() -> None:
    """Imports every command before the first fork."""
    for module in COMMANDS.values():
        importlib.import_module(module)


def run(trial: Trial, keep: Path | None = None) -> Outcome:
    """Runs a trial in a new folder.

    Args:
      trial: what to run.
      keep: the folder is moved here if the trial was not survived.
    """
    work = Path(tempfile.mkdtemp(prefix="campaign-"))
    try:
        if trial.prepare:
            trial.prepare(work)
        places = {"{work}": str(work), "{out}": str(work / "out")}
        arguments = [_filled(argument, places) for argument in trial.arguments]
        before = _contents(work)
        code, text, seconds, memory = _forked(trial, arguments, work)
        faults = list(_faults(trial, code, text, seconds, memory))
        faults += _changed(before, _contents(work), trial.may_change)
        if trial.check and not faults:
            try:
                wrong = trial.check(work)
            except Exception as error:  # results that cannot be read are a fault of the command
                wrong = f"the result cannot be checked: {type(error).__name__}: {error}"
            faults += [wrong] if wrong else []
        lines = [found[0] for found in ONE_LINE.finditer(text)] or text.strip().splitlines() or [""]
        if faults and keep:
            (work / "printed.txt").write_text(text)
            subprocess.run(["cp", "-a", f"{work}/.", keep / _file_name(trial)], check=True)  # special files too
        return Outcome(trial.part, trial.name, code, lines[-1].replace(str(work), "WORK"), seconds, tuple(faults))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _filled(argument: str, places: dict[str, str]) -> str:
    for name, value in places.items():
        argument = argument.replace(name, value)
    return argument


def _file_name(trial: Trial) -> str:
    return re.sub(r"\W+", "_", f"{trial.part} {trial.name}")[:80]


def _forked(trial: Trial, arguments: list[str], work: Path) -> tuple[int, str, float, int]:
    """Returns the exit code, what was printed, the seconds, and the bytes of memory that the command added."""
    printed = work.with_name(work.name + ".printed")
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    child = os.fork()
    if not child:
        _in_child(trial, arguments, work, printed)
    status, hung = None, False
    while status is None:
        done, found, usage = os.wait4(child, os.WNOHANG)
        if done:
            status, memory = os.waitstatus_to_exitcode(found), usage.ru_maxrss * 1024
        elif time.monotonic() - began > trial.limit:
            hung = True
            os.killpg(child, signal.SIGKILL)
            time.sleep(0.1)
        else:
            time.sleep(0.01)
    try:
        os.killpg(child, signal.SIGKILL)
        left = True
    except ProcessLookupError:
        left = False
    text = printed.read_text(errors="replace")
    printed.unlink()
    if hung:
        text += f"\nHANGS: more than {trial.limit:g} s"
    elif left:
        time.sleep(0.2)  # a child that was just ending is none that was left
        text += "\nLEFT: processes of the command were still running"
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return status, text, time.monotonic() - began, max(0, memory - own)


def _in_child(trial: Trial, arguments: list[str], work: Path, printed: Path) -> None:
    os.setsid()
    code = 1
    try:
        target = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, source in ((0, nothing), (1, target), (2, target)):
            os.dup2(source, descriptor)
        os.environ["TMPDIR"] = os.environ["XDG_CACHE_HOME"] = str(work / "tmp")
        module = sys.modules[COMMANDS[trial.command]]
        sys.argv = ["campaign", *arguments]
        code = module.main() or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 0xFF)


def _faults(trial: Trial, code: int, text: str, seconds: float, memory: int):
    if "HANGS:" in text:
        yield f"hangs: more than {trial.limit:g} s"
        return
    if code < 0:
        yield f"crashes with signal {-code}"
        return
    if "Traceback (most recent call last)" in text:
        yield f"shows a traceback: {text.strip().splitlines()[-1][:200]}"
        return
    if code not in DOCUMENTED:
        yield f"exit code {code} has no meaning"
    elif code not in trial.codes:
        yield f"exit code {code}, expected {' or '.join(map(str, trial.codes))}"
    elif code and not ONE_LINE.search(text):
        yield "prints no line that begins with error: or note:"
    if trial.says and code in trial.codes and not re.search(trial.says, text, re.IGNORECASE):
        yield f"does not say {trial.says!r}"
    if memory > MOST_MEMORY:
        yield f"takes {memory / 2**20:.0f} MiB"


def _contents(work: Path) -> dict[str, str]:
    """Returns a digest of everything in the trial's folder, except its output and temporary files."""
    found = {}
    for path in sorted(work.rglob("*")):
        name = str(path.relative_to(work))
        if name.split("/")[0] in ("out", "tmp"):
            continue
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "special"
    return found


def _changed(before: dict[str, str], after: dict[str, str], allowed: tuple[str, ...]):
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name) and not any(name == a or name.startswith(f"{a}/") for a in allowed):
            what = "made" if name not in before else "deleted" if name not in after else "changed"
            yield f"{what} {name}, which is not its own"
