"""What `import bcss_jax` offers: functions that stay functions, and nothing heavy before they are used."""

import subprocess
import sys

import pytest
from helpers.paths import ROOT

import bcss_jax

HEAVY = ("jax", "flax", "numpy", "PIL", "tensorflow", "ml_collections")


def printed(script, *arguments):
    command = [sys.executable, *arguments] if arguments else [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_importing_the_package_imports_nothing_heavy():
    script = "import sys, bcss_jax; bcss_jax.Run; print(*{'jax', 'flax', 'tensorflow', 'cv2'} & set(sys.modules))"
    assert printed(script) == []
    script = f"import sys, bcss_jax; dir(bcss_jax); print(*set({HEAVY}) & set(sys.modules))"
    assert printed(script) == []


def test_every_name_is_there_and_documented():
    for name in bcss_jax.__all__:
        assert getattr(bcss_jax, name).__doc__, name
        assert name in dir(bcss_jax)
    with pytest.raises(AttributeError, match="module 'bcss_jax' has no attribute 'evalute'"):
        bcss_jax.evalute  # noqa: B018


NAMES = "print(*(type(each).__name__ for each in (bcss_jax.evaluate, bcss_jax.segment)))"


@pytest.mark.parametrize(
    "before",
    [
        "import bcss_jax",
        "import bcss_jax.evaluate, bcss_jax.segment",
        "import importlib, bcss_jax; [importlib.import_module(f'bcss_jax.{name}') for name in ('evaluate', 'segment')]",
        "import bcss_jax, bcss_jax.commands.evaluate, bcss_jax.commands.segment",
        "import bcss_jax; from bcss_jax import evaluate, segment; assert callable(evaluate) and callable(segment)",
        "import bcss_jax; bcss_jax.segment; import bcss_jax.segment",
    ],
)
def test_functions_are_not_replaced_by_modules_of_their_names(before):
    assert printed(f"{before}; {NAMES}") == ["function", "function"]


def test_a_process_that_a_command_spawns_imports_nothing_for_it():
    # As `python -m bcss_jax.segment`: its children run the module again, under the name __mp_main__.
    code = (
        "import runpy, sys; found = runpy.run_module('bcss_jax.segment', run_name='__mp_main__'); "
        "print('jax' in sys.modules, sys.modules.get('bcss_jax.segment'))"
    )
    assert printed(code) == ["False", "None"]
