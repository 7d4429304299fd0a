"""Writes docs/configuration.md from the modules of settings.

    python docs/generate_configuration.py

The tables take each setting, its default and the comment on its line. tests/docs/test_configuration.py compares the
page with what this script writes.
"""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from bcss_jax import config
from bcss_jax.nnunet import config as nnunet_config
from bcss_jax.pretraining import config as pretraining_config
from bcss_jax.tuning import config as tuning_config

PAGE = Path(__file__).with_name("configuration.md")

INTRODUCTION = """\
<!-- Written by docs/generate_configuration.py from the code; edit the comments there. -->

# Configuration

A file under `configs/` chooses the network and changes a few defaults. After the colon comes the
[layout](data.md#layouts):

<!-- test: not run: the quickstart runs this command; here it shows how settings are written -->
```bash
python -m bcss_jax.main --config=configs/unet.py:kaggle224 --config.data.dir=FOLDER \\
    --config.batch_size=32 --config.optimizer.learning_rate=1e-3
```

Every setting below can be changed on the command line, as `--config.NAME=VALUE`. An unknown name is refused with the
nearest names that exist, a number outside its range with that range. The arguments of a network that its config file
names are settings too (`--config.model.width=32`).

The sample and any layout with `,few` (a few hundred tiles) get settings for short runs: batch 8, a learning rate that
is multiplied by 0.3 when the validation loss has stalled for two epochs, and no early stopping. With `,few`, images
are flipped and rotated by quarter turns, nothing else. `,kaggle_t4` computes in float16, on both T4s that Kaggle lends.
By its [compiled program](accelerators.md), the published U-Net's batch of 128 takes 8.8 GB of each.
`,robust` changes the strength of hematoxylin and eosin in 0.8 of the training images (`augment.stain`), before the
other changes of color: each stain's optical density is multiplied by a factor from 0.7 to 1.3
(`augment.stain_strength`), with the stain vectors of Ruifrok and Johnston. White stays white. It is not part of the
published recipe, and whether it improves scores on other laboratories has not been measured yet.

## Where images are augmented

With `augment_on=host`, the cores of the machine augment the training images with Albumentations. With `device`, the
accelerator runs the same recipe: the same probabilities, strengths, order, borders and rounding, and labels from
outside the image are ignored as on the host. The random numbers are others, so an image is changed differently, from
the same distribution. Given the same parameters, turns and flips are equal; other images differ by at most one gray
level in at most 2 % of the values (rounding), and by at most three in 6 % after several changes of color. Where the
width of the images is not a multiple of 32, OpenCV rounds hues of the last columns differently. What an image becomes
depends on the seed, the epoch and the image alone, not on batch, devices, processes or interruptions. Evaluation is
the same with both. [What it brings](speed.md#input) depends on the cores; the scores are
[compared](results.md#augmentation-on-the-device).

## Types of the computation

`dtype` is the type in which the network computes. Parameters, batch statistics, softmax and losses are float32 with
each. Checkpoints of all three are evaluated, exported and used for slides by the same commands.

- `float32` is the most exact. NVIDIA's cards from Ampere on multiply it as TF32.
- `bfloat16` is for cards from Ampere on (A100, L4, H100) and for TPUs.
- `float16` is for T4 and V100, whose tensor cores have neither bfloat16 nor TF32. The program says so on such a card.
  It has not been timed on one.

In float16 the loss is multiplied by a scale before the backward pass, because the gradients would be too small, and
the gradients are divided by it in float32 before they are clipped. The scale starts at 65536, is doubled after 2000
steps with finite gradients (at most 16777216), and is halved when gradients overflow (at least 1). Such a step is left
out and counted as `skipped_by_loss_scale` in `summary.json`, `history.csv` and the table of epochs. It is no bad step
(`max_bad_steps`): those are steps whose loss is not finite, or whose gradients overflow although the scale is 1. The
scale is part of the checkpoint, so a resumed run goes on to the same numbers. The scores are
[compared with those of float32](results.md#float16).

## Resuming

A run can be resumed with other values of the settings that change only how fast or how often something is done:
{runtime}. A change of any other setting is refused, because the result would be that of another run.
"""

NNUNET = """\
## nnU-Net

The settings of `configs/nnunet.py`, from `bcss_jax/nnunet/config.py`. What the [plan](nnunet.md#plans) decides (patch,
batch, network, normalization) is not a setting: `--config.plan` takes a file, which can be edited.
"""


PRETRAINING = """\
## Pretraining

The settings of `configs/dino.py`, from `bcss_jax/pretraining/config.py`; see [few labels](few_labels.md).
"""


TUNING = """\
## Prompts

The settings that `configs/sam.py` has besides those of all trainings with `,prompts`, from `bcss_jax/tuning/config.py`;
see [tuning SAM](sam_tuning.md).
"""


def page() -> str:
    """Returns the text of the page."""
    runtime = ", ".join(f"`{name}`" for name in config.RUNTIME_FIELDS)
    recipe = ["## Training", "The settings of all other configs, from `bcss_jax/config.py`.", _table(config)]
    others = [NNUNET.rstrip(), _table(nnunet_config), TUNING.rstrip(), _table(tuning_config)]
    others += [PRETRAINING.rstrip(), _table(pretraining_config)]
    return "\n\n".join([INTRODUCTION.format(runtime=runtime).rstrip(), *recipe, *others]) + "\n"


def _table(module: ModuleType) -> str:
    """Returns a Markdown table of the settings that the module's function `default` makes."""
    lines = inspect.getsource(module).splitlines()
    functions = {node.name: node for node in ast.parse("\n".join(lines)).body if isinstance(node, ast.FunctionDef)}
    defaults = module.default()
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for node in _statements(functions, "default"):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        name = ast.unparse(node.targets[0]).removeprefix("config.")
        value = defaults
        for part in name.split("."):
            value = value[part]
        comment = _comment(lines[node.lineno - 1 : node.end_lineno]).replace("|", "\\|").replace("<", "&lt;")
        if isinstance(value, type(defaults)):  # a group: its fields follow
            rows.append(f"| **{name}** | | {comment} |".replace("|  |", "| |"))
        else:
            rows.append(f"| `{name}` | `{value!r}` | {comment} |".replace("|  |", "| |"))
    return "\n".join(rows)


def _statements(functions: dict[str, ast.FunctionDef], name: str) -> Iterator[ast.stmt]:
    """Yields the statements of a function in order, with those of the functions of the module that it calls."""
    for node in functions[name].body:
        called = ast.unparse(node.value.func) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else ""
        if called in functions:
            yield from _statements(functions, called)
        else:
            yield node


def _comment(lines: list[str]) -> str:
    """Returns the comment at the end of one of the lines of an assignment, or an empty string."""
    for line in lines:
        _, separator, comment = line.partition("  # ")
        if separator:
            return comment.strip()
    return ""


if __name__ == "__main__":
    PAGE.write_text(page())
