"""Scores trained runs on one split of a data set, side by side.

    python -m bcss_jax.evaluate --checkpoints=runs/unet,runs/transunet --output=results
        [--split=val] [--data.dir=FOLDER --data.layout=kaggle224] [--tta] [--ensemble]

The folds of a cross-validation are scored together, each on the images that it has not seen. With --clicks, SAMs that
take prompts are scored, runs of configs/sam.py:LAYOUT,prompts or files: how many clicks the objects need.

Network, label scheme, image statistics and data settings come from each checkpoint. To resume a stopped evaluation, run
the same command again. Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage, 75 stopped on request.
"""

import sys
from pathlib import Path

from bcss_jax.api.click_evaluation import evaluate_clicks
from bcss_jax.api.evaluation import SPLIT_BY, WHICH, evaluate
from bcss_jax.common import command
from bcss_jax.common.ranges import COUNT
from bcss_jax.data import discovery
from bcss_jax.errors import ConfigError

# Flags of training, as errors name them -> flags of this command.
FLAGS = {f"--config.data.{name}": f"--data.{name}" for name in ("dir", "list", "layout", "split", "mpp")}
FLAGS["--config.data.prepared_dir"] = "--prepared_dir"


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and evaluates. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command.log_progress()

    def parse_and_evaluate():
        options = vars(_parser().parse_args(argv))
        del options["debug"]
        if not options.pop("clicks"):
            evaluate(**options)
            return
        for name, default in (("which", "best"), ("batch_size", None), ("tta", False), ("ensemble", False)):
            if options.pop(name) != default:
                raise ConfigError(f"--clicks does not go with --{name}; leave one of them out")
        evaluate_clicks(**options)

    return command.run(parse_and_evaluate, debug="--debug" in argv, flags=FLAGS)


def _parser():
    parser = command.parser("python -m bcss_jax.evaluate", __doc__)
    add = parser.add_argument
    add(
        "--checkpoints",
        required=True,
        type=command.comma_separated_paths,
        help="folders of runs, or of their checkpoints, separated by commas",
    )
    add("--output", required=True, type=Path, help="folder for the results")
    add("--which", choices=WHICH, default="best", help="checkpoint to use of each run")
    add("--split", choices=discovery.SPLITS, default="val", help="split of the data set to score")
    from_checkpoint = "default: as in the checkpoint"
    add("--data.layout", dest="layout", choices=discovery.LAYOUTS, help=f"layout of the data set; {from_checkpoint}")
    add("--data.dir", dest="data_dir", help=f"folder of the data set; {from_checkpoint}")
    add("--data.list", dest="data_list", help=f"list of slides with their annotations; {from_checkpoint}")
    add(
        "--data.split",
        dest="data_split",
        choices=SPLIT_BY,
        help=f"how the data set is divided into splits; {from_checkpoint}",
    )
    add("--data.mpp", dest="mpp", type=float, help=f"resolution in um per pixel; {from_checkpoint}")
    add("--prepared_dir", default="~/.cache/bcss_jax", help="folder of the prepared data")
    add(
        "--batch_size", type=COUNT.parse, help="images per batch over all devices; default: the smallest among the runs"
    )
    add(
        "--tta",
        action="store_true",
        help="average over flips and quarter turns of each image, or over flips only if images are not square",
    )
    add("--ensemble", action="store_true", help="also score the mean of all checkpoints with the same label scheme")
    add(
        "--clicks",
        action="store_true",
        help="score SAMs that take prompts by simulated clicks and boxes; --checkpoints may name their files too",
    )
    add("--overwrite", action="store_true", help="replace results of other settings or models")
    command.add_debug(parser)
    return parser
