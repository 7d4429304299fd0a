"""table.md and table.tex: the Dice of several models, and the scores in the report's Table 1 next to `dice_report`.

An evaluation is a dict with these entries:
  `name`: name of the run;
  `model`: name of the network, as in `config.model.name`;
  `label_scheme`: `LabelScheme.to_json`;
  `trained_on`: `tfrecords.PreparedData.describe` of the training data, from the checkpoint; None if not known;
  `data`: `tfrecords.PreparedData.describe` of the evaluated data;
  `part`: the evaluated split, "train", "val" or "test";
  `scores`: result of `scores.scores`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_interval, format_table_score
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.labels import complete_json, unchecked_scheme

PUBLISHED = {"report_unet": ("U-Net", 0.834), "report_dense_unet": ("Dense U-Net", 0.812),
             "report_transunet": ("TransUNet", 0.823), "nnunet": ("nnU-Net", 0.809)}  # fmt: skip
# These have the names of Table 1, and are other networks than those of the report's own code.
NAMED_IN_TABLE = {"unet": "report_unet", "dense_unet": "report_dense_unet", "transunet": "report_transunet"}
PUBLISHED_SPLIT = "kaggle224 published split"
PUBLISHED_TILES = {"train": 30_760, "val": 5_429}  # of the kaggle224 data; its 4,021 test tiles have no masks
COMPARABLE = "dice_report is comparable with the report's Table 1 by task, split and tiles"
NOT_COMPARABLE = "Not comparable with the report's Table 1"

MARKDOWN_SPECIAL = re.compile(r"[\\`*\[\]<>|&~#]|(?<!\w)_|_(?!\w)")
TEX_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "*": "{*}",  # at the start of a row LaTeX would read them as arguments
    **{character: "\\" + character for character in "&%$#_{}"},
}  # fmt: skip


def write(folder: Path, evaluations: Sequence[dict]) -> None:
    """Writes table.md and table.tex into a folder; if there are several label schemes, a table and heading of each.

    Raises:
      DataError: no evaluations.
      StorageError: they cannot be written.
    """
    groups = by_scheme(evaluations) or [list(evaluations)]
    sections = [markdown(group) for group in groups]
    if len(groups) > 1:
        names = [group[0]["label_scheme"]["name"] for group in groups]
        titles = [  # different schemes may have the same name
            f"{name}, number {names[: number + 1].count(name)}" if names.count(name) > 1 else name
            for number, name in enumerate(names)
        ]
        sections = [f"## {markdown_text(title)}\n\n{text}" for title, text in zip(titles, sections, strict=True)]
    write_text(folder / "table.md", "\n".join(sections))
    write_text(folder / "table.tex", "\n".join(map(latex, groups)))


def by_scheme(evaluations: Sequence[dict]) -> list[list[dict]]:
    """Returns the evaluations of each label scheme, in their order. Schemes of one name may differ."""
    groups: dict[str, list[dict]] = {}
    for evaluation in evaluations:
        groups.setdefault(scheme_key(evaluation), []).append(evaluation)
    return list(groups.values())


def scheme_key(evaluation: dict) -> str:
    """Returns the whole label scheme of an evaluation as text, the same for files of all versions."""
    return json.dumps(complete_json(evaluation["label_scheme"]), sort_keys=True)


def main_rows(evaluations: Sequence[dict]) -> list[list[str]]:
    """Returns the main scores as rows of cells, the first of which is the header.

    Raises:
      ConfigError: The label schemes differ, as in `markdown`.
      DataError: There are no evaluations.
    """
    _refuse_different_schemes(evaluations)
    scheme = evaluations[0]["label_scheme"]
    names = [*(scheme["class_names"][label] for label in scheme["evaluated"]), "macro"]
    of_report = ["dice_report"] if _report_classes(evaluations[0]) else []
    rows = [["model", *names, "95 % interval", "HD95 um", "NSD", "ECE", *of_report]]
    for evaluation in evaluations:
        found = evaluation["scores"]
        low, high = found["intervals"]["dice_global"]["macro"]
        surface = [found["surface"][name]["macro"] for name in ("hd95_um", "nsd")]
        rows.append(
            [
                _one_line(evaluation["name"]),
                *(format_table_score(found["scores"]["dice_global"][name]) for name in names),
                format_interval(low, high),
                *map(format_table_score, (*surface, found["calibration"]["ece"])),
                *(format_table_score(found["scores"].get(name, {}).get("macro")) for name in of_report),
            ]
        )
    return rows


def text(evaluations: Sequence[dict]) -> str:
    """Returns the main scores as aligned columns, for a terminal. Errors as `main_rows`."""
    rows = main_rows(evaluations)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([f"{evaluations[0]['label_scheme']['name']}, Dice over all pixels:", *lines])


def markdown(evaluations: Sequence[dict]) -> str:
    """Returns the table and its notes as Markdown.

    Raises:
      ConfigError: The evaluations have different label schemes, so their scores cannot be compared.
      DataError: There are no evaluations.
    """
    header, *rows = ([markdown_text(cell) for cell in row] for row in _rows(evaluations))
    rule = ["---", "---", *["---:"] * (len(header) - 2)]
    lines = [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
    notes = [f"- {markdown_text(note)}" for note in _notes(evaluations)]
    return "\n".join([*lines, "", *notes, ""])


def latex(evaluations: Sequence[dict]) -> str:
    r"""Returns the table as a LaTeX `table`, which needs no package. The notes are its caption.

    Raises:
      ConfigError: The label schemes differ, as in `markdown`.
      DataError: There are no evaluations.
    """
    header, *rows = (" & ".join(map(_tex, row)) + r" \\" for row in _rows(evaluations))
    columns = "ll" + "r" * (header.count(" & ") - 1)
    caption = " ".join(map(_tex, _notes(evaluations)))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            header,
            r"\hline",
            *rows,
            r"\hline",
            r"\end{tabular}",
            rf"\caption{{{caption}}}",
            r"\end{table}",
            "",
        ]
    )


def not_comparable(evaluation: dict) -> list[str]:
    """Returns the reasons why an evaluation cannot be compared with the report's Table 1; empty if none is known.

    Table 1 is the score of a task with three classes, averaged over batches: `dice_report` is the only score of ours
    that it can be compared with.
    """
    trained_on, images = evaluation["trained_on"], evaluation["scores"]["number"]["images"]
    reasons = []
    if not _report_classes(evaluation):
        reasons.append(
            f"the label scheme is {evaluation['label_scheme']['name']}; Table 1 is of three classes, as in "
            "tumor_stroma_other"
        )
    elif "dice_report" not in evaluation["scores"]["scores"]:
        reasons.append("an earlier version evaluated it without dice_report; evaluate again with --overwrite")
    if (_split(evaluation["data"]), evaluation["part"]) != (PUBLISHED_SPLIT, "val"):
        reasons.append(f"evaluated on {_data(evaluation)}, not on val of the {PUBLISHED_SPLIT}")
    elif images != PUBLISHED_TILES["val"]:
        reasons.append(f"evaluated on {images} of the {PUBLISHED_TILES['val']} published val tiles")
    if trained_on is None:
        reasons.append("the training data are not known")
    elif _split(trained_on) != PUBLISHED_SPLIT:
        reasons.append(f"trained on the {_split(trained_on)}, not on the {PUBLISHED_SPLIT}")
    elif trained_on["tiles"].get("train") != PUBLISHED_TILES["train"]:
        found = trained_on["tiles"].get("train", 0)
        reasons.append(f"trained on {found} of the {PUBLISHED_TILES['train']} published train tiles")
    return reasons


def _report_classes(evaluation):
    """Returns the labels of tumor and stroma if the task is that of the report's own code."""
    return unchecked_scheme(evaluation["label_scheme"]).report_classes


def _rows(evaluations):
    """Yields the header and a row for each model. Cells are plain text.

    Under a scheme of another task than the report's, no column has the scores of Table 1.
    """
    _refuse_different_schemes(evaluations)
    scheme, of_report = evaluations[0]["label_scheme"], _report_classes(evaluations[0])
    names = [scheme["class_names"][label] for label in scheme["evaluated"]]
    of_report_columns = ["dice_report", "report's Table 1"] if of_report else []
    yield ["model", "data", *names, "macro", "95 % interval", "dice_image", "dice_batch", *of_report_columns]
    for evaluation in evaluations:
        values, intervals = evaluation["scores"]["scores"], evaluation["scores"]["intervals"]
        low, high = intervals["dice_global"]["macro"]
        ends = format_interval(low, high) + ("" if low is None else f" ({intervals['n']} {intervals['over']})")
        model = evaluation["model"] or ""
        published = PUBLISHED.get(NAMED_IN_TABLE.get(model, model), ("", None))[1]
        beside = [format_table_score(values.get("dice_report", {}).get("macro")), format_table_score(published)]
        yield [
            evaluation["name"],
            _data(evaluation),
            *(format_table_score(values["dice_global"][name]) for name in (*names, "macro")),
            ends,
            format_table_score(values["dice_image"]["macro"]),
            format_table_score(values["dice_batch"]["macro"]),
            *(beside if of_report else []),
        ]


def _notes(evaluations):
    scheme = evaluations[0]["label_scheme"]["name"]
    intervals = evaluations[0]["scores"]["intervals"]
    notes = [
        f"Dice under the label scheme {scheme}. The class columns, their mean (macro) and its interval are "
        "dice_global, computed from the pixels of all images together. dice_image (mean over images) and dice_batch "
        "(mean over batches) are also means over the classes.",
        f"Intervals: bootstrap with {intervals['resamples']} resamples of the patients or images in parentheses. "
        "Intervals over images are too narrow, because images of the same patient are not independent.",
    ]
    if _report_classes(evaluations[0]):
        found = ", ".join(f"{name} {dice:.3f}" for name, dice in PUBLISHED.values())
        notes.append(
            "dice_report is the Dice of the report's own code: per batch of 128 images, 1 for a class that the batch "
            "has neither in the truth nor in the prediction, then the mean of tumor and stroma and the mean over "
            f"batches. The report's Table 1 can be compared with it alone: {found}."
        )
    names: dict[str, list[str]] = {}
    for evaluation in evaluations:
        names.setdefault("; ".join(not_comparable(evaluation)), []).append(evaluation["name"])
    for reasons, alike in names.items():
        what = f"{NOT_COMPARABLE} ({reasons})" if reasons else COMPARABLE
        notes.append(f"{what}: {', '.join(alike)}.")
    others = [each["name"] for each in evaluations if each["model"] in NAMED_IN_TABLE]
    if others and _report_classes(evaluations[0]):
        notes.append(
            f"Other networks than those of the report's own code, which are report_unet, report_dense_unet and "
            f"report_transunet: {', '.join(others)}."
        )
    return notes


def _refuse_different_schemes(evaluations):
    if not evaluations:
        raise DataError("table: expected evaluations, found none; evaluate a checkpoint first")
    first = evaluations[0]
    for other in evaluations[1:]:
        if scheme_key(other) != scheme_key(first):
            raise ConfigError(
                f"{first['name']} was evaluated under the label scheme {first['label_scheme']['name']}, "
                f"{other['name']} under {other['label_scheme']['name']}: their scores cannot be compared; make a "
                "separate table of each"
            )


def _split(data):
    return f"{data['layout']} {data['split']} split"


def _data(evaluation):
    return f"{_split(evaluation['data'])}, {evaluation['part']}, {evaluation['scores']['number']['images']} images"


def markdown_text(text: str) -> str:
    """Escapes a text so that Markdown shows it unchanged, on one line."""
    return MARKDOWN_SPECIAL.sub(r"\\\g<0>", _one_line(text))


def _tex(text):
    return "".join(TEX_SPECIAL.get(character, character) for character in _one_line(text)).replace("–", "--")


def _one_line(text):
    """Replaces line breaks and control characters, which names from files may contain and which would break a table."""
    return re.sub(r"[\x00-\x1f\x7f\s]+", " ", text).strip()
