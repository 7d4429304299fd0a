"""MODEL_CARD.md: what a trained model is, what it is worth, and what it must not be used for.

Everything in it comes from the checkpoint and from its evaluation; what they do not say is said to be unknown.
"""

import json
import shlex
from pathlib import Path

from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_interval, format_table_score
from bcss_jax.evaluation.reporting import tables
from bcss_jax.evaluation.reporting.caveats import caveats
from bcss_jax.evaluation.reporting.tables import markdown_text

BCSS_LAYOUTS = ("kaggle224", "kaggle512", "roi")


def write(path: Path, evaluation: dict) -> None:
    """Writes the card of a model.

    Args:
      path: the file.
      evaluation: as in `markdown`.

    Raises:
      StorageError: it cannot be written.
    """
    write_text(path, markdown(evaluation))


def markdown(evaluation: dict) -> str:
    """The card of a model.

    Args:
      evaluation: as in `report.html`; of an ensemble `config`, `versions` and `pretrained` are None, and `checkpoint` is
        `{"members": [{"name", "folder", "which", "step", "epoch"}, ...]}`.
    """
    scheme = evaluation["label_scheme"]
    classes = [scheme["class_names"][label] for label in scheme["evaluated"]]
    sections = [
        [f"# {markdown_text(evaluation['name'])}", *_what_it_is(evaluation, classes)],
        ["## Use", *_use(evaluation, classes)],
        ["## Data", *_data(evaluation)],
        ["## Scores", *_scores(evaluation, classes)],
        ["## Limits", *_list(caveats(evaluation) or ["None are known beyond those under “Use”."])],
        ["## Pretrained weights", *_pretrained(evaluation)],
        ["## Loading", *_loading(evaluation)],
        ["## Origin", *_origin(evaluation)],
    ]
    return "\n".join(line for section in sections for line in (*section, "")).rstrip("\n") + "\n"


def _what_it_is(evaluation, classes):
    yield ""
    yield (
        f"Network `{_code(evaluation['model'])}` of bcss_jax; calls every pixel of an H&E image one of "
        f"{markdown_text(', '.join(classes))} (label scheme {markdown_text(evaluation['label_scheme']['name'])})."
    )


def _use(evaluation, classes):
    about = evaluation["trained_on"] or evaluation["data"]
    yield from _list(
        [
            "For research on the segmentation of breast-cancer tissue, such as comparing methods.",
            "Not for diagnosis, nor for any decision about a patient: it is not a medical device, and nobody has shown that "
            "it would be safe as one.",
            f"For RGB images at {about['mpp']} µm per pixel, as those that it was "
            f"{'trained' if evaluation['trained_on'] else 'evaluated'} on.",
            f"Its answers mean nothing for what is none of {', '.join(classes)}.",
        ]
    )


def _data(evaluation):
    trained_on, data = evaluation["trained_on"], evaluation["data"]
    lines = [f"Trained on: {_described(trained_on)}." if trained_on else "Trained on: not known."]
    if trained_on and trained_on["content_sha256"] == data["content_sha256"]:
        lines.append(f"Evaluated on: {evaluation['part']} of the same.")
    else:
        lines.append(f"Evaluated on: {evaluation['part']} of {_described(data)}.")
    number = evaluation["scores"]["number"]
    lines.append(
        f"Scored: {number['images']:,} images of patients: {number['patients']}, institutes: {number['institutes']}; "
        f"{number['pixels']:,} pixels with truth."
    )
    if any(about and about["layout"] in BCSS_LAYOUTS for about in (trained_on, data)):
        lines.append(
            "The layout is that of BCSS, which is CC0 1.0 (Amgad et al., Bioinformatics 35(18):3461, 2019); that the files "
            "are those of BCSS was not checked."
        )
    yield from _list(lines)


def _described(data):
    parts = ", ".join(
        f"{part} {count:,} images of patients: {data['patients'][part]}" for part, count in data["tiles"].items()
    )
    return (
        f"{data['layout']}, {data['split']} split ({parts}; patients in more than one part: "
        f"{data['patients_in_two_parts']}), SHA-256 of the content {data['content_sha256']}"
    )


def _scores(evaluation, classes):
    found, intervals = evaluation["scores"], evaluation["scores"]["intervals"]
    yield ""
    yield "| class | Dice | 95 % interval | IoU | precision | recall | HD95, µm | NSD |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name in [*classes, "macro"]:
        low, high = intervals["dice_global"][name]
        cells = [
            markdown_text(name),
            format_table_score(found["scores"]["dice_global"][name]),
            format_interval(low, high),
            format_table_score(found["scores"]["iou_global"][name]),
            format_table_score(found["precision"][name]),
            format_table_score(found["recall"][name]),
            format_table_score(found["surface"]["hd95_um"][name], 1),
            format_table_score(found["surface"]["nsd"][name]),
        ]
        yield f"| {' | '.join(cells)} |"
    reasons = tables.not_comparable(evaluation)
    lines = [
        "Dice, IoU, precision and recall count the pixels of all images together (dice_global, iou_global); macro is the "
        "mean over the classes.",
        f"Intervals: bootstrap, {intervals['resamples']:,} resamples of {intervals['n']:,} {intervals['over']}.",
        f"HD95 and NSD (tolerance {found['surface']['tolerance_um']} µm) are means over images; a class that was missed or "
        "invented counts there with the image's diagonal and 0.",
        f"Expected calibration error: {format_table_score(found['calibration']['ece'])}.",
        f"Not comparable with the recipe's Table 1: {'; '.join(reasons)}."
        if reasons
        else f"{tables.COMPARABLE}; which average of Dice the recipe reports is not known.",
    ]
    fitted = evaluation["temperature"]
    if fitted:
        lines.append(
            f"Temperature {fitted['value']:.3f}, fitted on {fitted['pixels']:,} pixels of {fitted['fitted_on']}: calibration "
            f"error of these {fitted['ece_before']:.3f} before, {fitted['ece_after']:.3f} after."
        )
    yield from _list(lines)


def _pretrained(evaluation):
    pretrained = evaluation["pretrained"]
    yield ""
    if pretrained:
        yield (
            f"Training began from `{_code(pretrained['file'])}` (SHA-256 `{_code(pretrained['sha256'])}`). Their source and "
            "license are not on record here; the license may bind this model too, so look it up where the file came from."
        )
    elif evaluation["config"] is None:
        yield "Not on record: this is an ensemble; see its members."
    else:
        yield "None: training began from random weights."


def _loading(evaluation):
    checkpoint = evaluation["checkpoint"]
    yield ""
    for one in (one for one in checkpoint.get("members", [checkpoint]) if "folds" in one):
        yield "```bash"
        yield f"python -m bcss_jax.nnunet predict --model={shlex.quote(one['folder'])} --images=FOLDER --out=FOLDER"
        yield "```"
        yield ""
        yield (
            f"nnU-Net's method, fold(s) {markdown_text(', '.join(one['folds']))}: each image is cropped and normalized by "
            "itself, seen in overlapping windows and mirrorings; the mean of the folds' logits counts."
        )
        yield ""
    members = [one for one in checkpoint.get("members", [checkpoint]) if "folds" not in one]
    if members:
        yield from _loading_networks(evaluation, members)


def _loading_networks(evaluation, members):
    yield "```python"
    yield "from bcss_jax.models.weights import pretrained"
    yield "from bcss_jax.training import checkpoint"
    yield ""
    for one in members:
        yield f"model, about = checkpoint.load_model({json.dumps(one['folder'])}, {json.dumps(one['which'])})"
    yield "state = pretrained.to_torch_state(model)  # PyTorch's names -> NumPy arrays"
    yield "```"
    if "members" in evaluation["checkpoint"]:
        yield ""
        yield "An ensemble: its prediction is the mean of its members' probabilities."
    elif evaluation["config"]:
        yield ""
        mean, deviation = (json.dumps(evaluation["config"][name]) for name in ("image_mean", "image_std"))
        yield f"It expects RGB from 0 to 1, less {mean}, divided by {deviation}; channels last."


def _origin(evaluation):
    checkpoint = evaluation["checkpoint"]
    lines = [
        f"Checkpoint{' ' + one['name'] if 'name' in one else ''}: {one['which']}"
        + (", epoch not known" if one["epoch"] is None else f", epoch {one['epoch']}")
        for one in checkpoint.get("members", [checkpoint])
    ]
    lines.append(f"SHA-256 of the parameters: {evaluation['params_sha256']}")
    if evaluation["versions"]:
        lines.append("Versions in training: " + ", ".join(f"{k} {v}" for k, v in evaluation["versions"].items()))
    yield from _list(lines)


def _list(lines):
    yield ""
    for line in lines:
        yield f"- {markdown_text(line)}"


def _code(text):
    """For between two backticks, where Markdown escapes nothing."""
    return " ".join(str(text).replace("`", "'").split())
