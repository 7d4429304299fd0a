"""Links and files of others where commands write: none is followed, none is replaced."""

from collections.abc import Iterator
from pathlib import Path

import inputs
import trials
from inputs import Inputs
from trials import Outcome, Trial

PRECIOUS = "what the user keeps"
SEGMENTED = (
    ".lock", "summary.csv", ".summary.csv.tmp", "slide/.lock", "slide/labels.ome.tif", "slide/.labels.ome.tif.tmp",
    "slide/summary.json", "slide/.summary.json.tmp", "slide/regions.geojson", "slide/overlay.png", "slide/.work",
    "slide/probabilities.zarr", "slide",
)  # fmt: skip
TRAINED = (
    ".lock", "claim.lock", "config.json", ".config.json.tmp", "history.csv", "checkpoints", "tensorboard",
    "summary.json", ".summary.json.tmp",
)  # fmt: skip
SEGMENT = ("--slide={work}/slide.tif", "--output={out}", "--readers=1", "--min_area_um2=0")
EVALUATED = (".lock", "report.html", ".report.html.tmp", "table.md", "settings.json", "run", "figures", "MODEL_CARD.md")


def outcomes(source: Inputs, rounds: int, seed: int, keep: Path, only: str) -> Iterator[Outcome]:
    """Runs the rows."""
    yield from trials.run_rows(rows(source), rounds, seed, keep, only)


def rows(source: Inputs) -> Iterator[Trial]:
    """Yields, for every path that a command writes, trials with a link or a file of the user there."""
    evaluate = ("--checkpoints={work}/run", "--output={out}", "--data.dir={work}/tiles", "--prepared_dir={work}/tmp")
    for name in SEGMENTED:
        arguments = (f"--checkpoint={source.run}", *SEGMENT, "--probabilities", "--overwrite")
        yield from _planted("segment", arguments, name, source.copier("slide.tif"))
    for name in TRAINED:
        arguments = (*inputs.TRAIN, "--config.epochs=1")
        yield from _planted("train", arguments, name, source.copier("tiles"))
    for name in EVALUATED:
        yield from _planted("evaluate", (*evaluate, "--overwrite"), name, source.copier("tiles", "run"))
    for name in ("file link", "dangling link", "file"):
        yield _export(source, name)
    yield from _into_input(source)


def _planted(command: str, arguments: tuple[str, ...], name: str, copy) -> Iterator[Trial]:
    for kind in ("file link", "folder link", "dangling link"):

        def prepare(work: Path, kind=kind) -> None:
            copy(work)
            _keep_something(work)
            (work / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            targets = {"file link": "kept/file", "folder link": "kept", "dangling link": "kept/none"}
            (work / "out" / name).symlink_to(work / targets[kind])

        yield Trial("links", f"{command}: {kind} at {name}", command, arguments, (0, 2, 3, 5), "", prepare, limit=180)


def _keep_something(work: Path) -> None:
    (work / "kept").mkdir()
    (work / "kept/file").write_text(PRECIOUS)


def _export(source: Inputs, kind: str) -> Trial:
    def prepare(work: Path) -> None:
        _keep_something(work)
        target = work / "out"
        if kind == "file":
            target.write_text(PRECIOUS)
        else:
            target.symlink_to(work / ("kept/file" if kind == "file link" else "kept/none"))

    def check(work: Path) -> str:
        is_kept = kind != "file" or (work / "out").read_text() == PRECIOUS
        return "" if is_kept else "the user's file was replaced"

    arguments = (f"--checkpoint={source.run}", "--output={out}")
    codes = (2,) if kind == "file" else (0, 2)
    return Trial("links", f"export: {kind} at the output", "export", arguments, codes, "", prepare, check, limit=180)


def _into_input(source: Inputs) -> Iterator[Trial]:
    """Yields trials in which the output is the input."""

    def trial(name: str, command: str, arguments: tuple[str, ...], *copied: str, link: str = "") -> Trial:
        def prepare(work: Path) -> None:
            source.copier(*copied)(work)
            if link:
                (work / "alias").symlink_to(work / link)

        return Trial("links", f"{command}: {name}", command, arguments, (2,), "", prepare, limit=180)

    run, tiles = "{work}/run", "{work}/tiles"
    slide = ("--slide={work}/slide.tif", "--readers=1", "--overwrite")
    yield trial("output is the run", "segment", (f"--checkpoint={run}", *slide, f"--output={run}"), "run", "slide.tif")
    on_run = (f"--checkpoints={run}", f"--data.dir={tiles}", "--prepared_dir={work}/tmp", "--overwrite")
    yield trial("output is the run", "evaluate", (*on_run, f"--output={run}"), "run", "tiles")
    yield trial("output is the data", "evaluate", (*on_run, f"--output={tiles}"), "run", "tiles")
    yield trial(
        "output is a link to the data", "evaluate", (*on_run, "--output={work}/alias"), "run", "tiles", link="tiles"
    )
    as_workdir = tuple(a.replace("{out}", tiles) for a in inputs.TRAIN)
    yield trial("run's folder is the data", "train", as_workdir, "tiles")
    as_cache = tuple(f"--config.data.prepared_dir={tiles}" if "prepared_dir" in a else a for a in inputs.TRAIN)
    yield trial("prepared data into the data", "train", as_cache, "tiles")
    inspect = ("inspect", "--data.layout=kaggle224", f"--data.dir={tiles}", f"--output={tiles}", "--overwrite")
    yield trial("figures into the data", "data", inspect, "tiles")
    plan = ("plan", "--raw={work}/raw", "--out={work}/raw/dataset.json", "--prepared_dir={work}/tmp")
    yield trial("plan onto dataset.json", "nnunet", plan, "raw")
    yield trial("export onto a checkpoint", "export", (f"--checkpoint={run}", f"--output={run}/config.json"), "run")
