"""Looks at a data set: pictures, `inspect.json` and a few lines of text."""

import contextlib
import difflib
import json
import time
from pathlib import Path

from bcss_jax import labels
from bcss_jax.common import figures
from bcss_jax.common.files import storage_errors, write_text
from bcss_jax.common.json_files import describe_differences, differences, read_json
from bcss_jax.common.progress import ProgressLine
from bcss_jax.data.discovery import DataSettings
from bcss_jax.data.inspection import pictures
from bcss_jax.data.inspection.report import lines, report
from bcss_jax.data.inspection.source import Source, title_of
from bcss_jax.data.inspection.survey import BINS, Survey, most_different, take_survey
from bcss_jax.errors import ConfigError

RESULT = "inspect.json"
PICTURES = ("classes", "codes", "rgb_histograms", "examples", "stain", "copies")
FORMATS = ("png", "pdf")
MOST_PATCHES = 6  # beside one another in a picture


def inspect(
    settings: DataSettings,
    scheme: labels.LabelScheme,
    output: Path,
    *,
    patches: list[str] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Reads the data set and writes what it holds into a folder.

    Args:
      settings: which data set.
      scheme: the label scheme in which classes are counted.
      output: the folder; made if need be.
      patches: keys of the tiles whose colors are drawn; None: the two that differ most.
      overwrite: replace the results of other settings in that folder.

    Returns:
      What was found, and which files were written, in lines of text.

    Raises:
      ConfigError: masks that cannot give the scheme's classes, unknown patches, or a folder with other results.
      DataError: data missing or not usable.
      StorageError: the folder cannot be written.
    """
    start, title = time.perf_counter(), title_of(settings)
    about = _about(settings, scheme, patches)
    _check_scheme(settings, scheme)
    _check_output(output, about, overwrite)
    source = Source(settings)
    chosen = _find_patches([tile.key for tile in source.tiles], patches) if patches else None
    with storage_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        _remove_old(output)
    with contextlib.closing(ProgressLine("reading", len(source.tiles))) as line:
        survey = take_survey(source, line.update)
    found = report(survey, scheme)
    why = "chosen patches" if patches else "the two most different patches"
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
            figures.write(figure, output / f"{name}.{suffix}")
            written.append(f"{name}.{suffix}")
    found |= {
        "rgb_histograms": {"values_per_bin": 256 // BINS, "pixels": _histograms(survey, chosen)},
        "examples": [survey.tiles[index].key for index in shown],
        "pictures": written,
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_text(output / RESULT, json.dumps({"settings": about, **found}, indent=1) + "\n")
    text = lines(found, title, settings.layout)
    if figures_by_name["copies"] is None:
        text.append("no picture of copies, for there are none")
    names = ", ".join(name for name, figure in figures_by_name.items() if figure)
    return [*text, f"written to {output}: {RESULT} and, as {' and '.join(FORMATS)}, {names}"]


def _about(settings: DataSettings, scheme: labels.LabelScheme, patches: list[str] | None) -> dict:
    """What makes the results of one call differ from those of another."""
    about = {"data.layout": settings.layout, "labels": scheme.name, "patches": patches}
    if settings.layout != "sample":
        about |= {"data.dir": str(settings.folder.resolve()), "data.split": settings.split_by, "data.mpp": settings.mpp}
    if settings.layout == "roi":
        about |= {"data.patch_size": settings.patch_size, "data.stride": settings.stride}
    return about


def _check_scheme(settings: DataSettings, scheme: labels.LabelScheme) -> None:
    try:
        labels.lookup_table(scheme, settings.codes)
    except ValueError as error:
        raise ConfigError(f"--labels={scheme.name} with the layout {settings.layout}: {error}") from error


def _check_output(output: Path, about: dict, overwrite: bool) -> None:
    """Raises ConfigError if the folder holds results of other settings, or is no folder."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output={output}: expected a folder, found a file; choose another name")
    path = output / RESULT
    if overwrite or not path.exists():
        return
    found = read_json(path, "results of an inspection", "add --overwrite", kind=dict, error_type=ConfigError)
    if not isinstance(found.get("settings"), dict):
        raise ConfigError(f"{path}: expected results of an inspection, found JSON without settings; add --overwrite")
    changed = differences(found["settings"], about)
    if changed:
        raise ConfigError(
            f"--output={output} holds results of other settings ({describe_differences(changed)}); use another folder, or "
            "--overwrite"
        )


def _remove_old(output: Path) -> None:
    """Takes away an earlier inspection's files, so that none is left that does not belong to the new one."""
    for name in (RESULT, *(f"{name}.{suffix}" for name in PICTURES for suffix in FORMATS)):
        (output / name).unlink(missing_ok=True)


def _find_patches(keys: list[str], patches: list[str]) -> list[int]:
    """Indices of the patches; ConfigError for one that is not there, with the nearest that is."""
    if len(patches) > MOST_PATCHES:
        raise ConfigError(f"--patches: at most {MOST_PATCHES} fit beside one another, found {len(patches)}")
    place = {key: index for index, key in enumerate(keys)}
    for patch in patches:
        if patch not in place:
            near = difflib.get_close_matches(patch, keys, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise ConfigError(f"--patches: there is no tile {patch}{hint}")
    return [place[patch] for patch in patches]


def _histograms(survey: Survey, chosen: list[int]) -> dict:
    return {
        survey.tiles[index].key: dict(zip(("red", "green", "blue"), survey.histograms[index].tolist(), strict=True))
        for index in chosen
    }
