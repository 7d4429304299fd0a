"""Verifies and inspects a data set before anything is trained on it.

    python -m bcss_jax.data verify --data.dir=FOLDER [--data.layout=kaggle224]
    python -m bcss_jax.data inspect --data.dir=FOLDER [--data.layout=kaggle224] --output=DIR

`verify` reads every file and reports whether training would accept the data. `inspect` writes figures and inspect.json.
Both take --data.layout=sample without a folder. Exit codes: 0 done, 2 settings, 3 data, 5 storage.
"""

import argparse
import contextlib
import difflib
import sys
from pathlib import Path

from bcss_jax.common import command
from bcss_jax.common.progress import ProgressLine
from bcss_jax.common.ranges import WINDOW
from bcss_jax.data.discovery import TILE_LAYOUTS, DataSettings, check_mpp_setting
from bcss_jax.data.inspection.inspect import inspect
from bcss_jax.data.inspection.report import number_of
from bcss_jax.data.inspection.source import Source
from bcss_jax.data.inspection.verify import verify
from bcss_jax.errors import ConfigError, DataError, in_flags_of_command, printable
from bcss_jax.labels import SCHEMES, find_scheme

NAMED = 10  # number of defects, and of notes, that are printed; all are counted
# Flags of training, as errors name them -> flags of this command.
FLAGS = {
    f"--config.data.{name}": f"--data.{name}" for name in ("dir", "layout", "split", "mpp", "patch_size", "stride")
}


def main(argv: list[str] | None = None) -> int:
    """Parses the command line and runs the action. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command.log_progress()

    def parse_and_do():
        args = _parser().parse_args(argv)
        args.action(args)

    return command.run(parse_and_do, debug="--debug" in argv, flags=FLAGS)


def _parser():
    parser = command.parser("python -m bcss_jax.data", __doc__)
    actions = parser.add_subparsers(required=True, metavar="verify | inspect")
    data = command.OneLineParser(add_help=False)
    data.add_argument(
        "--data.dir", dest="dir", type=Path, metavar="FOLDER", help="folder of the data set; the sample needs none"
    )
    data.add_argument("--data.layout", dest="layout", default="kaggle224", help=", ".join(TILE_LAYOUTS))
    data.add_argument(
        "--data.split", dest="split", default="published", help="how the tiles are split: published, or institute"
    )
    data.add_argument("--data.mpp", dest="mpp", type=float, default=0.25, help="um per pixel of the images")
    data.add_argument(
        "--data.patch_size", dest="patch_size", type=WINDOW.parse, default=224, help="roi: side of the patches, pixels"
    )
    data.add_argument(
        "--data.stride", dest="stride", type=WINDOW.parse, default=224, help="roi: distance between patches, pixels"
    )
    command.add_debug(data)

    verify_parser = actions.add_parser("verify", parents=[data], help="check files, masks, codes and splits")
    verify_parser.set_defaults(action=_verify)

    inspect_parser = actions.add_parser("inspect", parents=[data], help="figures of classes, colors, stain and copies")
    inspect_parser.set_defaults(action=_inspect)
    inspect_parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for the figures and inspect.json"
    )
    inspect_parser.add_argument(
        "--labels", default="tumor_stroma", help=f"label scheme: {', '.join(SCHEMES)}, or a TOML file"
    )
    inspect_parser.add_argument(
        "--patches", metavar="KEY,KEY", help="tiles whose colors are drawn; two very different ones by default"
    )
    inspect_parser.add_argument("--overwrite", action="store_true", help="replace results of other settings")
    return parser


def _settings(args: argparse.Namespace) -> DataSettings:
    _one_of("--data.layout", args.layout, TILE_LAYOUTS)
    if args.layout == "sample" and args.dir:
        raise ConfigError(
            f"--data.dir={args.dir}: the built-in sample has no folder; give the layout of your data with --data.layout"
        )
    if args.layout != "sample" and not args.dir:
        raise ConfigError("--data.dir=FOLDER is missing; --data.layout=sample needs none")
    check_mpp_setting(args.mpp, args.layout)
    return DataSettings(args.layout, args.dir, args.split, args.mpp, args.patch_size, args.stride)


def _one_of(option: str, value: str, values) -> None:
    if value not in values:
        near = difflib.get_close_matches(value, values, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{option}={value}: must be one of {', '.join(values)}{hint}")


def _verify(args: argparse.Namespace) -> None:
    settings = _settings(args)
    source = Source(settings, collect=True)
    with contextlib.closing(ProgressLine("verifying", len(source.tiles))) as line:
        verdict = verify(source, line.update)
    for note in verdict.notes[:NAMED]:
        print(f"note: {note}")
    if len(verdict.notes) > NAMED:
        print(f"note: and {len(verdict.notes) - NAMED} more")
    defects = [(kind, line) for kind, lines in verdict.defects.items() for line in lines]
    for kind, line in defects[:NAMED]:
        print(f"{kind}: {in_flags_of_command(line, FLAGS)}", file=sys.stderr)
    if len(defects) > NAMED:
        print(f"and {len(defects) - NAMED} more", file=sys.stderr)
    usable = sum(verdict.tiles.values())
    splits = ", ".join(f"{split} {count}" for split, count in verdict.tiles.items()) or "no split"
    rate = f"{verdict.seconds:.1f} s, {len(source.tiles) / max(verdict.seconds, 1e-9):.0f} tiles/s"
    print(
        f"{number_of(usable, 'usable tile')} ({splits}) of {number_of(verdict.patients, 'patient')} from "
        f"{number_of(verdict.institutes, 'institute')}; {number_of(verdict.pairs, 'pair')} of files read in {rate}",
        flush=True,
    )
    if defects:
        counted = ", ".join(f"{len(lines)} {kind}" for kind, lines in verdict.defects.items())
        where = printable(settings.folder) if settings.folder else "the sample"
        raise DataError(f"{where}: {number_of(len(defects), 'defect')} ({counted}); repair what is named above")
    print("no defect")


def _inspect(args: argparse.Namespace) -> None:
    scheme = find_scheme(args.labels, "--labels")
    patches = None
    if args.patches is not None:
        patches = [patch.strip().removesuffix(".png") for patch in args.patches.split(",") if patch.strip()]
        if not patches:
            raise ConfigError("--patches: expected keys of tiles, separated by commas, found none")
    settings = _settings(args)
    for line in inspect(settings, scheme, args.output, patches=patches, overwrite=args.overwrite):
        print(line)


if __name__ == "__main__":
    command.start(main)
