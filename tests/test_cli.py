"""The command `bcss-jax`: its subcommands are the modules, and they are found and described."""

import importlib.util
import subprocess
import sys

import pytest
from helpers.paths import ROOT

from bcss_jax import __version__, cli


def run(*arguments):
    command = [sys.executable, "-m", "bcss_jax.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_command_module_has_a_subcommand():
    for module, _ in cli.COMMANDS.values():
        spec = importlib.util.find_spec(module)
        assert spec is not None
        main = importlib.util.find_spec(f"{module}.__main__") if spec.submodule_search_locations else spec
        assert 'if __name__ == "__main__":' in open(main.origin).read()
    starts = {path.stem for path in (ROOT / "bcss_jax").glob("*.py") if "command.start(main)" in path.read_text()}
    assert starts == {module.partition(".")[2] for module, _ in cli.COMMANDS.values()} & starts
    assert not starts - {module.removeprefix("bcss_jax.") for module, _ in cli.COMMANDS.values()}


@pytest.mark.parametrize("given", [(), ("--help",), ("-h",)])
def test_help_lists_all_commands(given):
    result = run(*given)
    assert result.returncode == 0
    assert all(f"  {name} " in result.stdout for name in cli.COMMANDS)


def test_version():
    assert run("--version").stdout == f"bcss_jax {__version__}\n"


def test_an_unknown_command_is_one_line_with_the_nearest():
    result = run("segmnt", "--slide=x")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: 'segmnt': no such command; did you mean segment? See bcss-jax --help\n"


def test_arguments_and_exit_codes_pass_through():
    shown = run("view", "--help")
    assert shown.returncode == 0 and "--port" in shown.stdout
    refused = run("view", "no_such_folder")
    assert refused.returncode in (2, 3)
    assert (
        refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1 and "no_such_folder" in refused.stderr
    )
