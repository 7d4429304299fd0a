"""The command `bcss-jax`: its subcommands are the modules, and they are found and described."""

import importlib
import logging
import re
import runpy
import subprocess
import sys

import pytest
from helpers.paths import ROOT

from bcss_jax import __version__, cli


def run(*arguments):
    command = [sys.executable, "-m", "bcss_jax.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_command_has_a_subcommand_and_a_module_to_run():
    assert all(callable(importlib.import_module(module).main) for module, _ in cli.COMMANDS.values())
    written = {f"bcss_jax.commands.{path.stem}" for path in (ROOT / "bcss_jax" / "commands").glob("[a-z]*.py")}
    assert written == {module for module, _ in cli.COMMANDS.values() if module.startswith("bcss_jax.commands.")}
    for path in (ROOT / "bcss_jax").glob("*.py"):
        for started in re.findall(r'cli.start\("(.*)"\)', path.read_text()):
            assert started in cli.COMMANDS, path


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "pretrain",
        "evaluate",
        "segment",
        "embed",
        "scribble",
        "annotate",
        "prompt",
        "serve_sam",
        "view",
        "export",
    ]
    + ["compile_for", "import_model", "doctor"],
)
def test_python_m_runs_the_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--no_such_option"])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # which would outlive this test
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"bcss_jax.{name}", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("name,example", [("main", "configs/unet.py"), ("pretrain", "configs/dino.py")])
def test_a_training_without_options_is_told_what_is_missing(name, example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"bcss_jax.{name}", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: --config is missing; try --config={example}\n"


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
