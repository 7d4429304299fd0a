"""Every shell command and Python block in README and docs is run, or marked as not run with the reason.

`helpers.doc_blocks` describes the marks. Commands run in a folder with a tiny data set, a tiny trained model and a tiny
slide. Of commands that are not run, the files, modules and options they name are checked.
"""

import contextlib
import importlib
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from helpers import tile_files
from helpers.annotated_slides import listed_slides
from helpers.doc_blocks import Block, blocks
from helpers.paths import ROOT
from helpers.slide_files import svs
from helpers.slides_small import tissue_picture

from bcss_jax import cli
from bcss_jax.config import field_names
from bcss_jax.config_file import find_config_file

BLOCKS = blocks()
RUN = [block for block in BLOCKS if block.runs]
NOT_RUN = [block for block in BLOCKS if not block.runs]
SIZE = 64  # pixels of the tiles
SHELL = ("source", "git", "cd", "export")  # commands of a shell that name nothing of this package
TRAINING = ("bcss_jax.main", "bcss_jax.pretrain", "bcss_jax.commands.train", "bcss_jax.commands.pretrain")
VARIABLE = re.compile(r"\w+=\S*")


def _parameters(chosen: list[Block]) -> list:
    return [pytest.param(block, id=block.name, marks=[pytest.mark.slow] if block.slow else []) for block in chosen]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as a reader of the pages has it: configs, a data set in FOLDER, trained runs, a slide and a list."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "configs").symlink_to(ROOT / "configs")
    seed = 0
    for split, count in (("train", 4), ("val", 3), ("test", 3)):
        for number in range(count):
            seed += 1
            pixels, labels = tissue_picture(SIZE, SIZE, seed)
            name = tile_files.name(f"TCGA-A{seed % 9 + 1}-A0D{seed % 9}", x=SIZE * number, size=SIZE)
            tile_files.save(folder / "FOLDER" / split / f"{name}.png", pixels)
            tile_files.save(folder / "FOLDER" / f"{split}_mask" / f"{name}.png", labels)
    svs(folder / "case.svs", tissue_picture(3 * SIZE, 4 * SIZE)[0])
    (folder / "list.csv").write_text("slide\ncase.svs\n")
    listed_slides(folder, ("P01", "P02", "P03", "P04", "P05"), name="slides.csv")
    options = ("--config.epochs=1", "--config.model.width=4", "--config.model.depth=1", "--config.batch_size=4")
    train = ["python", "-m", "bcss_jax.main", "--config=configs/unet.py:kaggle224", "--config.data.dir=FOLDER"]
    _run([*train, *options, "--config.eval_batch_size=3", "--workdir=runs/unet"], folder)
    shutil.copytree(folder / "runs" / "unet", folder / "runs" / "transunet")
    return folder


def _run(words: list[str], folder) -> None:
    """Runs a command in a process of its own; its cache lies in the folder."""
    environment = {
        **os.environ,
        "HOME": str(folder / "home"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        # One device: eight virtual ones would have to share tiny batches.
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("--xla_force_host_platform_device_count=8", ""),
    }
    assert words[0] == "python", f"only Python commands can be run here, not {words[0]}"
    result = subprocess.run(
        [sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"


def _options_of(module: str, action: str | None = None) -> set[str]:
    """The options in the help of a command."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        importlib.import_module(module).main([*([action] if action else []), "--help"])
    return set(re.findall(r"--[\w.-]+", shown.getvalue()))


def _check_training(arguments: list[str]) -> None:
    """Checks the options of the commands that train: flags of their help, fields of the config file."""
    source = (ROOT / "bcss_jax" / "commands" / "_run_options.py").read_text()
    configs = [word.removeprefix("--config=") for word in arguments if word.startswith("--config=")]
    file, _, argument = find_config_file((configs or ["configs/unet.py"])[0]).partition(":")
    config = runpy.run_path(str(ROOT / file))["get_config"](*[argument] if argument else [])
    for word in arguments:
        option = word.partition("=")[0]
        if option.startswith("--config."):
            assert option.removeprefix("--config.") in field_names(config), f"{file} has no setting {option}"
        else:
            assert option in ("--config", "--help") or f'"{option[2:]}"' in source, f"training has no option {option}"


def _check(words: list[str]) -> None:
    """Checks the files, modules and options that a command names."""
    while VARIABLE.fullmatch(words[0]):
        words = words[1:]
    program, *rest = words
    if program == "bcss-jax":
        rest = ["-m", cli.COMMANDS[rest[0]][0].removesuffix(".__main__"), *rest[1:]]
    if program in SHELL or program.endswith(("sphinx-build", "ruff", "pyright")):
        return
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"\[(.*)\]", " ".join(rest))[0].split(",")
        assert set(named) <= extras.keys()
    elif program == "bash":
        assert (ROOT / rest[0]).is_file(), f"there is no {rest[0]}"
        if rest[0] == "launch/local.sh":
            _check_training(rest[1:])
    elif program == "sbatch":
        scripts = [word for word in rest if word.endswith(".sh")]
        assert scripts and all((ROOT / script).is_file() for script in scripts)
    elif rest[0] == "-m" and rest[1] in TRAINING:
        _check_training(rest[2:])
    elif rest[0] == "-m" and rest[1] == "bcss_jax.models":
        pass
    elif rest[0] == "-m" and rest[1].startswith("bcss_jax."):
        package = (ROOT / rest[1].replace(".", "/")).is_dir()
        action = rest[2] if package else None
        code = f"bcss_jax.commands.{rest[1].rpartition('.')[2]}"
        known = _options_of(f"{rest[1]}.__main__" if package else code, action)
        for word in rest[2:]:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, f"{' '.join(rest[:3])} has no option {word}"
    elif rest[0].endswith(".py") or (ROOT / rest[0] / "__main__.py").is_file():
        path = ROOT / rest[0]
        source = (path / "__main__.py" if path.is_dir() else path).read_text()
        own = rest[1 : rest.index("--")] if "--" in rest else rest[1:]
        for word in own:
            if word.startswith("--"):
                option = word.partition("=")[0]
                assert f'"{option}"' in source or f'"{option[2:]}"' in source, f"{rest[0]} has no option {option}"
    else:
        pytest.fail(f"no rule to check {' '.join(words)}")


def test_every_block_says_how_it_is_tested():
    unmarked = [block.name for block in BLOCKS if not block.runs and not block.reason]
    # Python that is part of a page's explanation and not a program is indented in a longer function.
    assert [name for name in unmarked if not name.startswith("extending.md")] == []


def test_pages_have_commands():
    assert len(RUN) >= 10 and len(NOT_RUN) >= 10


@pytest.mark.parametrize("block", _parameters([block for block in NOT_RUN if block.language == "bash"]))
def test_command_that_is_not_run_names_what_exists(block):
    for words in block.commands():
        _check(words)


@pytest.mark.parametrize("block", _parameters(RUN))
def test_block_runs(block, place):
    if block.language == "python":
        (place / "block.py").write_text(block.code)
        _run(["python", "block.py"], place)
        return
    for number, words in enumerate(block.commands()):
        _check(words)
        _run(words + (block.options if number == 0 else []), place)


def test_commands_within_text_name_what_exists():
    for page in sorted({block.page for block in BLOCKS}):
        for command in re.findall(r"`((?:python|bash) [^`]+)`", page.read_text()):
            _check(command.split())


def test_tissue_of_the_tiny_data_set_has_both_classes(place):
    from PIL import Image

    codes = np.concatenate([np.unique(np.asarray(Image.open(p))) for p in (place / "FOLDER/train_mask").iterdir()])
    assert {1, 2} <= set(codes.tolist())
