"""Gathers what to publish of a trained run: weights, settings, scores, model card, and the SHA-256 of each file."""

import shutil
from pathlib import Path

from bcss_jax.api.evaluation_report import EvaluationReport
from bcss_jax.api.run import Run
from bcss_jax.common.digests import sha256_of_file
from bcss_jax.common.files import storage_errors, write_text
from bcss_jax.errors import ConfigError, DataError, printable

HASHES = "SHA256SUMS"
OF_RUN = ("config.json", "summary.json", "history.csv", "curves.png", "samples.png")
OF_EVALUATION = ("evaluation.json", "report.html", "table.md")
CARD = "MODEL_CARD.md"


def gather(run: Run, report: EvaluationReport, folder: Path) -> Path:
    """Copies what to publish of a finished run and of its evaluation into a new folder, and writes SHA256SUMS.

    The copy is a run that `segment`, `evaluate` and `export` take. It holds the checkpoint of the best epoch alone.

    Args:
      run: the run; neither a cross-validation nor a run of nnU-Net's method.
      report: its evaluation; gives the model card.
      folder: is made; must not be there.

    Returns:
      The folder.

    Raises:
      ConfigError: the folder is there already.
      DataError: the run is not finished, or was not evaluated in the report.
      StorageError: the files cannot be written.
    """
    if folder.exists():
        raise ConfigError(f"{printable(folder)}: expected a folder that is not there yet; name another")
    if not run.finished or run.folds:
        raise DataError(
            f"{printable(run.folder)}: expected a finished run; publish folds of a cross-validation one by one"
        )
    evaluated = [each for each in report.content["evaluations"] if each["name"] == run.folder.resolve().name]
    if not evaluated:
        raise DataError(
            f"{printable(report.folder)}: expected an evaluation of {printable(run.folder)}, found none; evaluate it"
        )
    step = str(evaluated[0]["checkpoint"]["step"])
    sources = {name: run.folder / name for name in OF_RUN}
    sources |= {f"evaluation/{name}": report.folder / name for name in OF_EVALUATION}
    sources[CARD] = report.folder / evaluated[0]["folder"] / CARD
    with storage_errors(folder):
        for name, source in sources.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
        shutil.copytree(run.folder / "checkpoints" / step, folder / "checkpoints" / step)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_text(folder / HASHES, "".join(f"{sha256_of_file(path)}  {path.relative_to(folder)}\n" for path in files))
    return folder
