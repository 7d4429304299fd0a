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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

COMMANDS = {  # what `Trial.command` names -> module
    "train": "bcss_jax.commands.train",
    "evaluate": "bcss_jax.commands.evaluate",
    "segment": "bcss_jax.commands.segment",
    "export": "bcss_jax.commands.export",
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


def run_rows(
    rows: Iterable[Trial], rounds: int, seed: int, keep: Path | None = None, only: str = ""
) -> Iterator[Outcome]:
    """Runs the trials of a table: all of them, or a seeded choice if they are more than `rounds`.

    Args:
      rows: the table.
      rounds: how many trials to run at most.
      seed: of the choice.
      keep: as in `run`.
      only: text that the names of the trials must contain.
    """
    rows = [trial for trial in rows if only in trial.name]
    if len(rows) > rounds:
        chosen = np.random.default_rng(seed).choice(len(rows), rounds, replace=False)
        rows = [rows[number] for number in sorted(chosen)]
    for trial in rows:
        yield run(trial, keep)


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
        arguments = [filled(argument, places) for argument in trial.arguments]
        before = _contents(work)
        ended = finish(start(trial.command, arguments, work), trial.limit)
        faults = list(_faults(trial, ended))
        faults += _changed(before, _contents(work), trial.may_change)
        if trial.check and not faults:
            try:
                wrong = trial.check(work)
            except Exception as error:  # results that cannot be read are a fault of the command
                wrong = f"the result cannot be checked: {type(error).__name__}: {error}"
            faults += [wrong] if wrong else []
        if faults and keep:
            (work / "printed.txt").write_text(ended.text)
            subprocess.run(["cp", "-a", f"{work}/.", keep / _file_name(trial)], check=True)  # special files too
        line = ended.line.replace(str(work), "WORK")
        return Outcome(trial.part, trial.name, ended.code, line, ended.seconds, tuple(faults))
    finally:
        shutil.rmtree(work, ignore_errors=True)


def filled(argument: str, places: dict[str, str]) -> str:
    """Returns an argument with the names of places replaced."""
    for name, value in places.items():
        argument = argument.replace(name, value)
    return argument


def _file_name(trial: Trial) -> str:
    return re.sub(r"\W+", "_", f"{trial.part} {trial.name}")[:80]


@dataclasses.dataclass(frozen=True)
class Running:
    """A command that was started: its process, where it prints, and since when it runs (of `time.monotonic`)."""

    process: int
    printed: Path
    began: float


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
      code: as in `Outcome`.
      text: what was printed.
      seconds: that it ran.
      memory: bytes that it took at most, beyond what importing takes.
      hung: whether it had to be killed because it took too long.
      left: whether processes of it ran on.
    """

    code: int
    text: str
    seconds: float
    memory: int
    hung: bool = False
    left: bool = False

    @property
    def line(self) -> str:
        """The line of the error or note, or else the last line."""
        return ([found[0] for found in ONE_LINE.finditer(self.text)] or self.text.strip().splitlines() or [""])[-1]


def start(command: str, arguments: list[str], work: Path) -> Running:
    """Starts a command in a fork of this process, in its own process group.

    Args:
      command: a key of `COMMANDS`.
      arguments: of the command.
      work: temporary files go to `tmp` in it.
    """
    number, printed = tempfile.mkstemp(prefix="campaign-printed-")
    os.close(number)
    sys.stdout.flush()
    sys.stderr.flush()
    began = time.monotonic()
    child = os.fork()
    if not child:
        _in_child(command, arguments, work, Path(printed))
    return Running(child, Path(printed), began)


def finish(running: Running, limit: float) -> Ended:
    """Waits until a command ends, kills it after `limit` seconds, and ends what it left running."""
    child, hung, status, usage = running.process, False, None, None
    while status is None:
        done, found, usage = os.wait4(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(found)
        elif time.monotonic() - running.began > limit and not hung:
            hung = True
            os.killpg(child, signal.SIGKILL)
        else:
            time.sleep(0.01)
    seconds = time.monotonic() - running.began
    left = _is_group(child)
    if left:  # a child that is just ending is not one that was left
        time.sleep(0.5)
        left = _is_group(child)
        if left:
            os.killpg(child, signal.SIGKILL)
    text = running.printed.read_text(errors="replace")
    running.printed.unlink()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Ended(status, text, seconds, max(0, usage.ru_maxrss * 1024 - own), hung, left)


def _is_group(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def _in_child(command: str, arguments: list[str], work: Path, printed: Path) -> None:
    os.setsid()
    code = 1
    try:
        target = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, source in ((0, nothing), (1, target), (2, target)):
            os.dup2(source, descriptor)
        os.environ["TMPDIR"] = os.environ["XDG_CACHE_HOME"] = str(work / "tmp")
        module = sys.modules[COMMANDS[command]]
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


def _faults(trial: Trial, ended: Ended) -> Iterator[str]:
    if ended.hung:
        yield f"hangs: more than {trial.limit:g} s"
        return
    yield from faults_of(ended, trial.codes)
    if trial.says and ended.code in trial.codes and not re.search(trial.says, ended.text, re.IGNORECASE):
        yield f"does not say {trial.says!r}"


def faults_of(ended: Ended, codes: tuple[int, ...]) -> Iterator[str]:
    """Yields what is wrong with the way a command ended, whatever it was to do; `codes` are right."""
    if ended.code < 0:
        yield f"crashes with signal {-ended.code}"
    elif "Traceback (most recent call last)" in ended.text:
        yield f"shows a traceback: {ended.text.strip().splitlines()[-1][:200]}"
    elif ended.code not in DOCUMENTED:
        yield f"exit code {ended.code} has no meaning"
    elif ended.code not in codes:
        yield f"exit code {ended.code}, expected {' or '.join(map(str, codes))}"
    elif ended.code and not ONE_LINE.search(ended.text):
        yield "prints no line that begins with error: or note:"
    if ended.left:
        yield "leaves processes running"
    if ended.memory > MOST_MEMORY:
        yield f"takes {ended.memory / 2**20:.0f} MiB"


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
