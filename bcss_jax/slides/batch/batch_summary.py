"""Short summaries of segmented slides: a line on the screen, and summary.csv with a row for each slide of a list."""

import contextlib
import csv
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bcss_jax.common.files import storage_errors, wait_for_lock, write_text
from bcss_jax.common.outputs import written_files
from bcss_jax.errors import Preempted, StorageError, printable
from bcss_jax.slides.batch.slide_folder import Done, model_folders, status_of
from bcss_jax.slides.batch.slide_list import Entry
from bcss_jax.slides.slide_summary import SlideSummary

TABLE = "summary.csv"
INTERVAL_S = 30.0  # between two updates of summary.csv
GLASS = "glass_inside_tissue_mm2"  # a column only where glass was taken out
COLUMNS = (
    "slide",
    "model",
    "status",
    "reason",
    "folder",
    "tissue_mm2",
    "tumor_stroma_ratio",
    "unreadable_mm2",
    "seconds",
    "resumed",
)


def line_of(summary: SlideSummary, position: str, folder: Path, done: Done) -> str:
    """Returns the text for one slide: areas, ratio, seams, scores, time, and where the results are.

    Args:
      summary: of the slide.
      position: in the list, for example "3/20 ", or "".
      folder: of the results.
      done: what was done now.
    """
    classes = ", ".join(f"{each.name} {each.area_mm2:.2f}" for each in summary.classes)
    parts = [f"{summary.tissue_area_mm2:.2f} mm2 of tissue ({classes})"]
    if summary.glass_area_mm2:
        parts.append(f"{summary.glass_area_mm2:.2f} mm2 of glass inside it left out")
    if summary.tumor_stroma_ratio is not None:
        parts.append(f"tumor to stroma {summary.tumor_stroma_ratio:.2f}")
    if summary.unreadable_area_mm2:
        parts.append(f"{summary.unreadable_area_mm2:.3f} mm2 unreadable")
    if summary.seams["score"] is not None:
        parts.append(f"seams {summary.seams['score']:.3f}")
    for dice, where in ((summary.dice, ""), (summary.dice_of_region, " in the region")):
        known = ", ".join(f"{name} {value:.3f}" for name, value in (dice or {}).items() if value is not None)
        if known:
            parts.append(f"Dice{where} {known}")
    if done is Done.SCORED:
        parts.append(f"scored now in {summary.seconds['scores']:.1f} s, not computed again")
    elif done is Done.BEFORE:
        parts.append("done before")
    else:
        parts.append(f"{summary.seconds['total']:.1f} s{' since it was resumed' if summary.resumed else ''}")
    slide, model = summary.slide, summary.model
    mpp = f"{slide.mpp[0]:.4g} um/px, segmented at {model['mpp']:.4g}"
    return (
        f"{position}{printable(slide.name)} ({mpp}) by {model['name']}: {'; '.join(parts)}\n"
        f"  overlay: {folder / 'overlay.png'}"
    )


def check_table(output: Path) -> None:
    """Checks that summary.csv in the output is absent, or was written by this program.

    Raises:
      ConfigError: it is the file of something else.
      StorageError: the folder cannot be written.
    """
    path = output / TABLE
    if path.is_file() and not path.is_symlink() and not written_files.has_record(output):
        with open(path, encoding="utf-8", errors="replace") as file:
            if file.readline(1000).startswith(",".join(COLUMNS)):  # written before there were records
                with storage_errors(output):
                    written_files.adopt_files(output, [TABLE])
    written_files.check([path])


@contextlib.contextmanager
def updated_table(output: Path, entries: list[Entry], several: bool) -> Iterator[Callable[[], None]]:
    """Keeps summary.csv up to date while slides are segmented, and writes it at the end, also after an error.

    Args:
      output: as the others, of `write_table`.
      entries: the whole list.
      several: there is a folder for each model.

    Yields:
      A function to be called after each slide. It writes the table unless it was written within the last `INTERVAL_S`
      seconds, because writing looks into the folder of every slide.

    Raises:
      StorageError: it cannot be written.
    """
    last = time.monotonic()

    def after_slide():
        nonlocal last
        if time.monotonic() - last >= INTERVAL_S:
            write_table(output, entries, several)
            last = time.monotonic()

    try:
        yield after_slide
    except (Exception, Preempted):
        with contextlib.suppress(StorageError):  # the first error matters more
            write_table(output, entries, several)
        raise
    write_table(output, entries, several)


def write_table(output: Path, entries: list[Entry], several: bool) -> None:
    """Writes summary.csv from the slides' folders, including the folders of other shards.

    Other shards may write it at the same time.

    Args:
      output: the folder that holds the slides' folders.
      entries: the whole list.
      several: there is a folder for each model in the folder of a slide.

    Raises:
      StorageError: it cannot be written.
    """
    # The lock keeps rows that another process has just finished from being lost. Without locks, the table may be one
    # slide behind until the next slide is finished.
    with storage_errors(output), wait_for_lock(output / ".summary", required=False):
        write_text(output / TABLE, _table(output, entries, several))


def _table(output: Path, entries: list[Entry], several: bool) -> str:
    rows, area_columns = [], {}
    for entry in entries:
        folder = output / entry.folder
        models = model_folders(folder) if several else [folder]
        for path in models or [folder]:
            status = status_of(path)
            row = dict.fromkeys(COLUMNS, "") | {"slide": str(entry.slide), "status": status.name, "folder": str(path)}
            row["model"] = path.name if several and models else ""
            row["reason"] = status.reason
            summary = status.summary
            if summary is not None:
                row |= {
                    "model": summary.model["name"],
                    "tissue_mm2": _number(summary.tissue_area_mm2),
                    "tumor_stroma_ratio": _number(summary.tumor_stroma_ratio),
                    "unreadable_mm2": _number(summary.unreadable_area_mm2),
                    "seconds": _number(summary.seconds["total"]),
                    "resumed": "yes" if summary.resumed else "no",
                }
                if summary.glass_area_mm2 is not None:
                    area_columns[GLASS] = None
                    row[GLASS] = _number(summary.glass_area_mm2)
                areas = {f"{each.name}_mm2": _number(each.area_mm2) for each in summary.classes}
                area_columns |= dict.fromkeys(areas)
                row |= areas
            rows.append(row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*COLUMNS, *area_columns], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _number(value):
    return "" if value is None else f"{value:.6g}"


def _harmless(text):
    """Quotes text that a spreadsheet would run as a formula, and replaces bytes that are not text.

    Names of files may have such bytes.
    """
    text = text.encode("utf-8", "replace").decode()
    return f"'{text}" if text[:1] in ("=", "+", "@", "\t", "\r") or (text[:1] == "-" and not _is_number(text)) else text


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
