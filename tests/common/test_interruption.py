"""Requests to stop: noted wherever they arrive, acted on at safe points, and never taken for something else."""

import ast
import concurrent.futures
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from helpers.paths import ROOT
from PIL import Image, ImageFile

from bcss_jax.common import files, interruption
from bcss_jax.common.interruption import Interruption, result_of, safe_point
from bcss_jax.data import image_files
from bcss_jax.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def ask(number=signal.SIGTERM):
    signal.raise_signal(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_is_noted_and_raises_at_the_next_safe_point_only(number, capfd):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    before = [signal.getsignal(each) for each in SIGNALS]
    with Interruption() as active:
        safe_point()
        assert not active.requested
        ask(number)
        assert active.requested
        with pytest.raises(Preempted, match="the same command starts again"):
            active.begin()
        with pytest.raises(Preempted, match="^between two slides$"):
            safe_point("between two slides")
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    safe_point()  # nobody asks any more


def test_a_request_is_not_lost_where_python_cannot_raise():
    class Deleted:
        def __del__(self):
            ask()

    def collecting(phase, info):
        gc.callbacks.remove(collecting)
        ask()

    with Interruption() as active:
        gc.callbacks.append(collecting)
        gc.collect()
        assert active.requested
    with Interruption() as active:
        assert not active.requested
        Deleted()
        assert active.requested


def test_a_request_while_an_image_is_decoded_does_not_blame_the_image(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (ask(), load(self))[1])
    with Interruption() as active:
        assert image_files.read_image(tmp_path / "a.png").shape == (8, 8, 3)
        assert active.requested


def test_code_that_takes_every_error_for_a_damaged_file_does_not_take_a_stop_for_one():
    with Interruption(), pytest.raises(Preempted):
        ask()
        try:
            safe_point()
        except Exception as error:
            pytest.fail(f"taken for {error!r}")


def test_nothing_swallows_a_stop():
    """Code that catches everything raises it again, or passes it on to another thread."""
    for path in sorted((ROOT / "bcss_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or "BaseException" in ast.unparse(node.type)):
                text = ast.unparse(node)
                assert isinstance(node.body[-1], ast.Raise) or "set_exception" in text, f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node).startswith("contextlib.suppress(BaseException"):
                pytest.fail(f"{path}:{node.lineno}")


def test_a_wait_for_a_lock_and_for_a_thread_can_be_stopped(tmp_path):
    with files.wait_for_lock(tmp_path / "a"), Interruption():
        ask()
        with pytest.raises(Preempted, match="another process held a lock"), files.wait_for_lock(tmp_path / "a"):
            pass
        with pytest.raises(Preempted):
            result_of(concurrent.futures.Future())


def test_handlers_of_libraries_are_replaced_where_the_work_begins():
    with Interruption() as active:
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the library's handler"))
        active.begin()
        ask()
        assert active.requested


def test_one_of_several_processes_waits_for_the_others(monkeypatch):
    with Interruption() as active:
        interruption.act_together()
        ask()
        safe_point()
        assert active.requested


def test_a_forked_process_keeps_its_signals_to_itself():
    with Interruption() as active:
        child = os.fork()
        if child == 0:
            ask()  # ends it, as without this package
            os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
        time.sleep(0.3)
        assert not active.requested


def process(code, **options):
    code = "from bcss_jax.common import interruption, command\nfrom bcss_jax.common.interruption import *\n" + code
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


BUSY = """
import sys, time
interruption.GRACE_SECONDS = {grace}
interruption.install()
print("ready", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    pass
"""


def test_what_never_reaches_a_safe_point_is_ended_with_75():
    running = process(BUSY.format(grace=0.5))
    running.stdout.readline()
    running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=20)
    assert running.returncode == 75
    assert errors.splitlines() == [
        "stop requested: stopping at the next point where nothing is lost",
        "note: stopped in the middle of a long computation; what is saved stays, and the same command goes on from "
        "there",
    ]


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not():
    running = process(BUSY.format(grace=60))
    running.stdout.readline()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        running.send_signal(number)
        time.sleep(0.3)
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=20)
    assert running.returncode == 75 and "note: ended at once" in errors and "Traceback" not in errors


def test_unsaved_work_gets_as_much_time_as_it_took():
    code = """
    interruption.GRACE_SECONDS = 0.2
    import os, signal, time
    def work(active):
        interruption.work_is_saved()
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        print("saved", flush=True)
        interruption.work_is_saved()
        safe_point()
    command.start(lambda: command.run_interruptible(work))
    """
    running = process(textwrap.dedent(code))
    output, errors = running.communicate(timeout=30)
    assert (running.returncode, output) == (75, "saved\n"), errors


def test_a_request_when_the_work_is_done_does_not_change_the_exit_code():
    code = """
    import atexit, os, signal
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        return 0
    interruption.install()
    command.start(work)
    """
    running = process(textwrap.dedent(code))
    assert running.communicate(timeout=20)[1].count("\n") <= 1 and running.returncode == 0


ARGUMENTS = {
    "data": ["verify", "--data.layout=sample"],
    "main": ["--config=configs/unet.py"],
    "evaluate": ["--checkpoints=none", "--output=none"],
    "segment": ["--checkpoint=none", "--slide=none", "--output=none"],
    "export": ["--checkpoint=none", "--output=none"],
    "nnunet": ["plan", "--raw=none", "--out=none"],
    "models": [],
    "view": ["none"],
}
ASKS_AT_THE_FIRST_IMPORT_OF_NUMPY = """
import os, signal, sys
class Asking:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Asking())
"""


@pytest.mark.parametrize(
    "module", [each if each == "data" else pytest.param(each, marks=pytest.mark.slow) for each in ARGUMENTS]
)
def test_a_request_during_the_imports_of_a_command(module, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(ASKS_AT_THE_FIRST_IMPORT_OF_NUMPY)
    ended = subprocess.run(
        [sys.executable, "-m", f"bcss_jax.{module}", *ARGUMENTS[module]],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 75 and "Traceback" not in ended.stderr, ended.stderr
    assert "stopped before anything was computed" in ended.stderr


def test_standard_output_that_nobody_reads_is_one_line():
    code = "command.start(lambda: command.run(lambda: [print('line') for _ in range(100_000)]))"
    running = process(code)
    running.stdout.close()
    errors = running.stderr.read()
    assert running.wait(timeout=20) == 5
    assert errors == "error: standard output: cannot be written (Broken pipe); check where it goes\n"
