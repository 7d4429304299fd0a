import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

from bcss_jax.common import command
from bcss_jax.common.ranges import Range
from bcss_jax.errors import ConfigError, DataError, Preempted


def raises(error):
    def action(*_):
        raise error

    return action


def test_success_is_0_and_silent(capsys):
    assert command.run(lambda: None) == command.run_interruptible(lambda interruption: None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("run", [command.run, command.run_interruptible])
def test_errors_are_one_line_in_the_flags_of_the_command(run, capsys):
    assert run(raises(DataError("a.png: not there; see --config.data.dir")), flags={"--config.data.dir": "--raw"}) == 3
    assert run(raises(Preempted("stopped"))) == 75
    assert capsys.readouterr().err == "error: a.png: not there; see --raw\nnote: stopped\n"
    assert run(raises(MemoryError("std::bad_alloc"))) == 5
    found = "out of memory (std::bad_alloc); use a machine with more memory, or smaller settings"
    assert capsys.readouterr().err == f"error: {found}\n"


def test_an_error_is_one_line_whatever_the_names(capsys):
    assert command.run(raises(DataError("a\nb\x1b[31m\udcff: not there"))) == 3
    assert capsys.readouterr().err == "error: a\\nb\\x1b[31m\\udcff: not there\n"
    assert command.run(lambda: Path("x" * 300).is_file()) == 3
    assert capsys.readouterr().err.endswith("xxx: File name too long; use shorter names\n")


def test_debug_and_programming_errors_raise(capsys):
    with pytest.raises(DataError):
        command.run(raises(DataError("a")), debug=True)
    with pytest.raises(ZeroDivisionError):
        command.run(raises(ZeroDivisionError()))
    assert capsys.readouterr().err == ""


def test_a_signal_before_anything_is_computed_is_a_note(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def asked(interruption):
        os.kill(os.getpid(), signal.SIGTERM)
        interruption.begin()

    assert command.run_interruptible(asked) == 75
    assert "note: stopped before anything was computed" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_parsers():
    parser = command.parser("python -m a", "Does it.")
    command.add_debug(parser)
    assert parser.parse_args(["--debug"]).debug and not parser.parse_args([]).debug
    assert parser.format_help().startswith("usage: python -m a [-h] [--debug]\n\nDoes it.\n")
    with pytest.raises(ConfigError, match="^unrecognized arguments: --deb; see --help$"):
        parser.parse_args(["--deb"])  # not even an abbreviation
    parser.add_argument("--side", type=Range(1, 9, whole=True).parse)
    with pytest.raises(ConfigError, match="^--side=12: must be a whole number from 1 to 9; see --help$"):
        parser.parse_args(["--side=12"])
    with pytest.raises(ConfigError) as error:
        parser.parse_args(["--a\nb"])
    assert len(str(error.value).splitlines()) == 1


def test_a_command_as_a_process_logs_to_stderr():
    code = (
        "import logging; from bcss_jax.common import command; log = logging.getLogger('bcss_jax.x')\n"
        "def main():\n    command.log_progress(); log.info('a'); logging.getLogger('other').info('b'); return 6\n"
        "command.start(main)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (6, "", "INFO: a\n")


def test_standard_output_takes_names_that_are_not_utf_8():
    code = "from bcss_jax.common import command\ncommand.start(lambda: print('a\\udcff.png') or 0)"
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "a\\udcff.png\n", "")
