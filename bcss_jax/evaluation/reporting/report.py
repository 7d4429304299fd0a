"""report.html: an evaluation as a single web page that needs no other file and no network.

The page contains its pictures as data URIs. A Content-Security-Policy forbids all requests, and all scripts and styles
except the two of `templates/`, which it identifies by their hashes. Names come from files and are escaped by Jinja.
"""

import base64
import hashlib
import importlib.resources
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from bcss_jax.common.figures import class_colors, dice_lines, error_map, hatched
from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_table_score
from bcss_jax.common.html import html_environment
from bcss_jax.errors import DataError
from bcss_jax.evaluation.reporting import figures, tables
from bcss_jax.evaluation.reporting.caveats import caveats
from bcss_jax.evaluation.statistics import bootstrap
from bcss_jax.labels import LabelScheme, absent_classes

TEMPLATES = importlib.resources.files("bcss_jax.evaluation.reporting") / "templates"
TINT = 140  # opacity of the class colors over the image, out of 255
JPEG_QUALITY = 92  # a third of the size of a PNG; the gallery folder has the exact pixels


def write(path: Path, results: dict, galleries: Mapping[str, Sequence[dict]]) -> None:
    """Writes the report.

    Args:
      path: the file.
      results: as in `html`.
      galleries: as in `html`.

    Raises:
      DataError: There are no evaluations.
      StorageError: The file cannot be written.
    """
    write_text(path, html(results, galleries))


def read_gallery(folder: Path, evaluation: dict) -> list[dict]:
    """Reads the entries of a gallery, as in `figures.gallery`, from its files.

    Args:
      folder: folder of the model.
      evaluation: its `gallery` is a list of dicts with `rank`, `key` and `files`, `{"image", "truth", "prediction"}`.

    Raises:
      DataError: A file is missing or damaged.
    """
    entries = []
    for chosen in evaluation["gallery"]:
        entry = {"rank": chosen["rank"], "key": chosen["key"]}
        for kind, file in chosen["files"].items():
            try:
                with Image.open(folder / file) as picture:
                    entry[kind] = np.asarray(picture)
            except OSError as error:
                raise DataError(
                    f"{folder / file}: expected an image of the gallery, found none that can be read; evaluate again"
                ) from error
        entries.append(entry)
    return entries


def html(results: dict, galleries: Mapping[str, Sequence[dict]]) -> str:
    """Returns the report.

    Args:
      results: content of evaluation.json: `settings`; `evaluations` as in `figures.write`, with `config`, `versions`,
        `pretrained`, `params_sha256` and `checkpoint` (each may be None); and `differences`, dicts with `a`, `b`,
        `over`, `n` and `dice_global`, class -> `{"difference", "low", "high"}`.
      galleries: entries as in `figures.gallery`, by the name of the model's folder.

    Raises:
      DataError: There are no evaluations.
    """
    evaluations = results["evaluations"]
    if not evaluations:
        raise DataError("report: expected evaluations, found none; evaluate a checkpoint first")
    environment = html_environment("bcss_jax.evaluation.reporting")
    environment.filters |= {"score": format_table_score, "json": _json, "breakable": _breakable}
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(
        style=Markup(style),
        script=Markup(script),
        policy="; ".join(
            [
                "default-src 'none'",
                "img-src data:",
                f"style-src {_hash(style)}",
                f"script-src {_hash(script)}",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        settings=results["settings"],
        evaluations=evaluations,
        differences=results["differences"],
        resamples=bootstrap.RESAMPLES,
        caveats=_grouped((evaluation["name"], caveats(evaluation)) for evaluation in evaluations),
        published=_grouped((evaluation["name"], _published(evaluation)) for evaluation in evaluations),
        groups=list(_groups(evaluations)),
        curves=_curves(evaluations),
        pictures={
            evaluation["folder"]: {
                "confusion": _png(figures.confusion(evaluation["scores"]["confusion"], evaluation["name"])),
                "reliability": _png(
                    figures.reliability(
                        evaluation["scores"]["calibration"], evaluation["name"], evaluation["temperature"]
                    )
                ),
            }
            for evaluation in evaluations
        },
        galleries={
            evaluation["folder"]: {
                "legend": _legend(figures.scheme_of(evaluation)),
                "ranks": _ranks(galleries.get(evaluation["folder"], ()), figures.scheme_of(evaluation)),
            }
            for evaluation in evaluations
        },
        data=_data(evaluations),
    )


def _groups(evaluations):
    """Yields groups of evaluations that can be compared: with the same label scheme and the same images."""
    groups = {}
    for evaluation in evaluations:
        scheme, data, split = tables.scheme_key(evaluation), evaluation["data"], evaluation["part"]
        key = json.dumps([scheme, data["content_sha256"], data["mpp"], split, evaluation["scores"]["number"]])
        groups.setdefault(key, []).append(evaluation)
    for group in groups.values():
        scheme, data, number = figures.scheme_of(group[0]), group[0]["data"], group[0]["scores"]["number"]
        intervals = group[0]["scores"]["intervals"]
        yield {
            "title": f"{data['layout']}, {data['split']} split, {group[0]['part']}; label scheme {scheme.name}",
            "size": ", ".join(_counted(number[what], what) for what in ("images", "patients", "institutes")),
            "over": f"{intervals['n']:,} {intervals['over']}",
            "classes": [*scheme.evaluated_names, "macro"],
            "evaluations": group,
        }


def _counted(number, what):
    return f"{number:,} {what if number != 1 else what.removesuffix('s')}"


def _grouped(found: Iterable[tuple[str, Sequence[str]]]) -> list[dict]:
    """Returns each sentence once, with the names of the models it applies to; None if it applies to all."""
    found = list(found)
    names = {}
    for name, sentences in found:
        for sentence in sentences:
            names.setdefault(sentence, []).append(name)
    return [
        {"text": sentence, "names": None if len(models) == len(found) else models} for sentence, models in names.items()
    ]


def _published(evaluation):
    reasons = tables.not_comparable(evaluation)
    if reasons:
        return [f"{tables.NOT_COMPARABLE}: {'; '.join(reasons)}."]
    dice = evaluation["scores"]["scores"]["dice_report"]["macro"]
    return [f"{tables.COMPARABLE}: {format_table_score(dice)}."]


def _curves(evaluations):
    histories = {evaluation["name"]: evaluation["history"] for evaluation in evaluations if evaluation["history"]}
    if not histories:
        return None
    return {"wide": _png(figures.curves(histories)), "narrow": _png(figures.curves(histories, stacked=True))}


def _data(evaluations):
    """Returns each data set that a model was evaluated or trained on, once."""
    found = {}
    for evaluation in evaluations:
        for what, use in (("data", f"evaluation of {evaluation['part']}"), ("trained_on", "training")):
            metadata = evaluation[what]
            if metadata is not None:
                entry = found.setdefault(metadata["content_sha256"], {"metadata": metadata, "uses": {}, "schemes": []})
                entry["uses"].setdefault(use, []).append(evaluation["name"])
                scheme = _scheme_facts(figures.scheme_of(evaluation), metadata)
                if scheme not in entry["schemes"]:
                    entry["schemes"].append(scheme)
    return list(found.values())


def _scheme_facts(scheme: LabelScheme, metadata: dict) -> dict:
    """Returns, for each split of a data set, the images without ground truth (None: not counted) and absent classes."""
    ignored, pixels = metadata["all_ignored"].get(scheme.name, {}), metadata["code_pixels"]
    return {
        "name": scheme.name,
        "without_truth": {split: ignored.get(split) for split in metadata["tiles"]},
        "absent": {
            split: absent_classes(scheme, metadata["codes"], pixels.get(split, {})) for split in metadata["tiles"]
        },
    }


def _ranks(entries, scheme):
    """Yields the cards of the gallery by rank, with a layer for each stop of the slider except the image itself."""
    for rank in figures.RANKS:
        cards = [
            {
                "key": entry["key"],
                "dice": dice_lines(entry["truth"], entry["prediction"], scheme),
                "width": entry["image"].shape[1],
                "height": entry["image"].shape[0],
                "image": _uri(entry["image"], "jpeg"),
                "truth": _uri(_tint(entry["truth"], scheme), "png"),
                "prediction": _uri(_tint(entry["prediction"], scheme), "png"),
                "errors": _uri(error_map(entry["truth"], entry["prediction"], scheme), "png"),
            }
            for entry in entries
            if entry["rank"] == rank
        ]
        if cards:
            yield {"rank": rank, "cards": cards}


def _tint(labels, scheme: LabelScheme):
    """Returns the class colors to draw over the image, RGBA. Pixels without ground truth are hatched."""
    colors = class_colors(scheme)[np.where(labels < scheme.num_classes, labels, 0)]
    colors = hatched(colors, labels == scheme.ignore_index)
    return np.concatenate([colors, np.full((*labels.shape, 1), TINT, np.uint8)], axis=-1)


def _legend(scheme):
    return [
        (scheme.class_names[label], "#" + bytes(class_colors(scheme)[label].tolist()).hex())
        for label in scheme.evaluated
    ]


def _uri(pixels, kind):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **({"quality": JPEG_QUALITY} if kind == "jpeg" else {}))
    return _data_uri(content.getvalue(), kind)


def _png(figure):
    return _data_uri(figures.png(figure), "png")


def _data_uri(content, kind):
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _hash(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _breakable(name):
    """Allows line breaks after the underscores of a long name."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _json(value):
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
