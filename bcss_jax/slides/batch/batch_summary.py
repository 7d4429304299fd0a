"""What is said of segmented slides in short: a line on the screen, and summary.csv with a row for each slide of a list."""

import contextlib
import csv
import io
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bcss_jax.common.files import storage_errors, wait_for_lock, write_text
from bcss_jax.errors import StorageError
from bcss_jax.slides.batch.slide_folder import Done, models_in, reason_of, status_of
from bcss_jax.slides.batch.slide_list import Entry

EVERY_S = 30.0  # between two writings of summary.csv
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


def line(summary: dict, place: str, path: Path, done: Done) -> str:
    """One slide: areas, ratio, seams, scores, time, and where the results are."""
    classes = ", ".join(f"{each['name']} {each['area_mm2']:.2f}" for each in summary["classes"])
    parts = [f"{summary['tissue_area_mm2']:.2f} mm2 of tissue ({classes})"]
    ratio, seam = summary["tumor_stroma_ratio"], summary["seams"]["score"]
    if ratio is not None:
        parts.append(f"tumor to stroma {ratio:.2f}")
    if summary["unreadable_area_mm2"]:
        parts.append(f"{summary['unreadable_area_mm2']:.3f} mm2 unreadable")
    if seam is not None:
        parts.append(f"seams {seam:.3f}")
    for key, where in (("scores", ""), ("scores_of_region", " in the region")):
        dice = summary.get(key, {}).get("dice", {})
        known = ", ".join(f"{name} {value:.3f}" for name, value in dice.items() if value is not None)
        if known:
            parts.append(f"Dice{where} {known}")
    model, slide = summary["model"], summary["slide"]
    if done is Done.SCORED:
        parts.append(f"scored now in {summary['seconds']['scores']:.1f} s, not computed again")
    elif done is Done.BEFORE:
        parts.append("done before")
    else:
        since = ", since it was gone on with" if summary["resumed"] else ""
        parts.append(f"{summary['seconds']['total']:.1f} s{since}")
    mpp = f"{slide['mpp'][0]:.4g} um/px, segmented at {model['mpp']:.4g}"
    return f"{place}{slide['name']} ({mpp}) by {model['name']}: {'; '.join(parts)}\n  look at: {path / 'overlay.png'}"


@contextlib.contextmanager
def kept_up(output: Path, entries: list[Entry], several: bool) -> Iterator[Callable[[], None]]:
    """Writes summary.csv while slides are segmented, and at the end, also when that is an error or a request to stop.

    Args:
      output: as the others, of `write`.
      entries: the whole list.
      several: there is a folder for each model.

    Yields:
      To be called after each slide: writes it unless that was done within the last `EVERY_S` seconds, because it looks
      into the folder of every slide.

    Raises:
      StorageError: it cannot be written.
    """
    last = time.monotonic()

    def after_slide():
        nonlocal last
        if time.monotonic() - last >= EVERY_S:
            write(output, entries, several)
            last = time.monotonic()

    try:
        yield after_slide
    except Exception:
        with contextlib.suppress(StorageError):  # what ended it matters more
            write(output, entries, several)
        raise
    write(output, entries, several)


def write(output: Path, entries: list[Entry], several: bool) -> None:
    """Writes summary.csv from what lies in the slides' folders, those of other shards too, which may do so at the same time.

    Args:
      output: the folder that holds them.
      entries: the whole list.
      several: there is a folder for each model in that of a slide.

    Raises:
      StorageError: it cannot be written.
    """
    own = output / f".summary-{socket.gethostname()}-{os.getpid()}.csv"
    # The lock keeps rows that another process has just finished from being lost. Without locks, the table may be one slide
    # behind until the next slide is finished.
    with storage_errors(output), wait_for_lock(output / ".summary", required=False):
        write_text(own, _table(output, entries, several))
        os.replace(own, output / "summary.csv")


def _table(output: Path, entries: list[Entry], several: bool) -> str:
    rows, areas = [], {}
    for entry in entries:
        folder = output / entry.folder
        models = models_in(folder) if several else [folder]
        for path in models or [folder]:
            status, content = status_of(path)
            row = dict.fromkeys(COLUMNS, "") | {"slide": str(entry.slide), "status": status, "folder": str(path)}
            row["model"] = path.name if several and models else ""
            row["reason"] = reason_of(path)
            if status == "done":
                row |= {
                    "model": content["model"]["name"],
                    "tissue_mm2": _number(content["tissue_area_mm2"]),
                    "tumor_stroma_ratio": _number(content["tumor_stroma_ratio"]),
                    "unreadable_mm2": _number(content["unreadable_area_mm2"]),
                    "seconds": _number(content["seconds"]["total"]),
                    "resumed": "yes" if content.get("resumed") else "no",
                }
                here = {f"{each['name']}_mm2": _number(each["area_mm2"]) for each in content["classes"]}
                areas |= dict.fromkeys(here)
                row |= here
            rows.append(row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*COLUMNS, *areas], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _number(value):
    return "" if value is None else f"{value:.6g}"


def _harmless(text):
    """Spreadsheets run what begins like a formula; and a name may hold bytes that are no text."""
    text = text.encode("utf-8", "replace").decode()
    return f"'{text}" if text[:1] in ("=", "+", "@", "\t", "\r") or (text[:1] == "-" and not _is_number(text)) else text


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True
