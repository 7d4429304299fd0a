"""Inspects a data set: writes figures and `inspect.json`, and returns lines of text."""

import contextlib
import difflib
import json
import time
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from bcss_jax import labels
from bcss_jax.common import figures
from bcss_jax.common.files import locked, storage_errors, write_text
from bcss_jax.common.interruption import safe_point
from bcss_jax.common.json_files import as_json, describe_differences, differences, read_json
from bcss_jax.common.outputs import written_files
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.progress import ProgressLine
from bcss_jax.common.regular_file import real_path
from bcss_jax.data.discovery import DataSettings, read_folders
from bcss_jax.data.inspection import pictures
from bcss_jax.data.inspection.report import report, report_lines
from bcss_jax.data.inspection.source import Source, title_of
from bcss_jax.data.inspection.survey import BINS, Survey, most_different, take_survey
from bcss_jax.errors import ConfigError

RESULT = "inspect.json"
PICTURES = ("classes", "codes", "rgb_histograms", "examples", "stain", "copies")
FORMATS = ("png", "pdf")
MOST_PATCHES = 6  # next to each other in a figure


class _Results(TypedDict):
    """What is read of inspect.json."""

    settings: dict[str, Any]


def inspect(
    settings: DataSettings,
    scheme: labels.LabelScheme,
    output: Path,
    *,
    patches: list[str] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Reads the data set and writes a report and figures into a folder.

    Args:
      settings: which data set.
      scheme: the label scheme of the classes.
      output: the folder; it is made if necessary.
      patches: keys of the tiles whose colors are drawn; None: two tiles with very different colors.
      overwrite: replace results of other settings in that folder.

    Returns:
      The results and the names of the written files, as lines of text.

    Raises:
      ConfigError: the masks cannot express the scheme's classes, a patch is unknown, or the folder has other results.
      DataError: the data are missing or unusable.
      StorageError: the folder cannot be written.
    """
    start, title = time.perf_counter(), title_of(settings)
    recorded = _recorded_settings(settings, scheme, patches)
    _check_scheme(settings, scheme)
    if settings.folder is not None:
        data = read_folders("--data.dir", settings.folder)
        refuse_inputs("--output", output, data[:1], data_folders=data[1:])
    _check_output(output, recorded, overwrite)
    source = Source(settings)
    chosen = _find_patches([tile.key for tile in source.tiles], patches) if patches else None
    with locked(output):
        with storage_errors(output):
            if (output / RESULT).exists():
                written_files.adopt(output)  # of an inspection before there were records
            written_files.delete(output, _files())
        found = {"settings": recorded, **_write_figures(source, scheme, output, chosen, title)}
        found["seconds"] = round(time.perf_counter() - start, 1)
        write_text(output / RESULT, json.dumps(found, indent=1) + "\n")
    text = report_lines(found, title, settings.layout)
    if line := source.left_out.line():
        text.append(f"left out: {line}")
    drawn = [name for name in PICTURES if f"{name}.{FORMATS[0]}" in found["pictures"]]
    if "copies" not in drawn:
        text.append("no figure of copies, because there are none")
    return [*text, f"written to {output}: {RESULT} and, as {' and '.join(FORMATS)}, {', '.join(drawn)}"]


def _write_figures(
    source: Source, scheme: labels.LabelScheme, output: Path, chosen: list[int] | None, title: str
) -> dict[str, Any]:
    """Reads the tiles and draws the figures. Returns what was found."""
    with contextlib.closing(ProgressLine("reading", len(source.tiles))) as line:
        survey = take_survey(source, line.update)
    found = report(survey, scheme)
    safe_point()
    why = "chosen patches" if chosen else "two very different patches"
    if chosen is None:
        chosen = list(dict.fromkeys(most_different(survey.histograms)))
    shown = pictures.choose_examples(survey, scheme)
    figures_by_name = {
        "classes": pictures.classes(found, scheme, title),
        "codes": pictures.codes(found, title),
        "rgb_histograms": pictures.rgb_histograms(survey, chosen, source, why, title),
        "examples": pictures.examples(survey, shown, source, scheme, title),
        "stain": pictures.stains(survey, found, title),
        "copies": pictures.copies(survey, found, source, title),
    }
    written = []
    for name, figure in figures_by_name.items():
        for suffix in FORMATS if figure else ():
            safe_point()
            figures.write(figure, output / f"{name}.{suffix}")
            written.append(f"{name}.{suffix}")
    found |= {
        "left_out": source.left_out.counts(),
        "rgb_histograms": {"values_per_bin": 256 // BINS, "pixels": _histograms(survey, chosen)},
        "examples": [survey.tiles[index].key for index in shown],
        "pictures": written,
    }
    return found


def _recorded_settings(settings: DataSettings, scheme: labels.LabelScheme, patches: list[str] | None) -> dict:
    """Returns the settings that the results depend on, as inspect.json has them."""
    recorded = {"data.layout": settings.layout, "labels": scheme.name, "patches": patches}
    if not scheme.is_shipped:
        recorded["label_scheme"] = as_json(scheme.to_json())
    if settings.folder is not None:
        recorded |= {
            "data.dir": str(real_path(settings.folder)),
            "data.split": settings.split_by,
            "data.mpp": settings.mpp,
        }
    if settings.layout == "roi":
        recorded |= {"data.patch_size": settings.patch_size, "data.stride": settings.stride}
    return recorded


def _check_scheme(settings: DataSettings, scheme: labels.LabelScheme) -> None:
    try:
        labels.lookup_table(scheme, settings.codes)
    except ValueError as error:
        raise ConfigError(f"--labels={scheme.name} with the layout {settings.layout}: {error}") from error


def _check_output(output: Path, recorded: dict, overwrite: bool) -> None:
    """Raises ConfigError if the folder has results of other settings, or is a file."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output={output}: expected a folder, found a file; choose another name")
    path = output / RESULT
    if written_files.has_record(output) or not path.exists():
        written_files.check(output / name for name in _files())
    if not path.exists() or (overwrite and written_files.has_record(output)):
        return
    found = read_json(path, "results of an inspection", "add --overwrite", kind=_Results, error_type=ConfigError)
    written_files.check(output / name for name in _files() if (output / name).is_symlink())
    changed = differences(found["settings"], recorded)
    if changed and not overwrite:
        raise ConfigError(
            f"--output={output} has results of other settings ({describe_differences(changed)}); use another folder, "
            "or --overwrite"
        )


def _files() -> list[str]:
    """Returns the names of all files that an inspection may write."""
    return [RESULT, *(f"{name}.{suffix}" for name in PICTURES for suffix in FORMATS)]


def _find_patches(keys: list[str], patches: list[str]) -> list[int]:
    """Returns the indices of the patches. Raises ConfigError for an unknown patch, with the most similar known one."""
    if len(patches) > MOST_PATCHES:
        raise ConfigError(f"--patches: at most {MOST_PATCHES} fit next to each other, found {len(patches)}")
    index_of = {key: index for index, key in enumerate(keys)}
    for patch in patches:
        if patch not in index_of:
            near = difflib.get_close_matches(patch, keys, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise ConfigError(f"--patches: there is no tile {patch}{hint}")
    return [index_of[patch] for patch in patches]


def _histograms(survey: Survey, chosen: list[int]) -> dict:
    return {
        survey.tiles[index].key: dict(zip(("red", "green", "blue"), survey.histograms[index].tolist(), strict=True))
        for index in chosen
    }
