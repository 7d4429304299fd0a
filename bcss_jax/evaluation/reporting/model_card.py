"""MODEL_CARD.md: describes a trained model, its scores, and what it must not be used for.

All its content comes from the checkpoint and its evaluation. The card says so where something is not known.
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
      StorageError: The file cannot be written.
    """
    write_text(path, markdown(evaluation))


def markdown(evaluation: dict) -> str:
    """Returns the card of a model.

    Args:
      evaluation: as in `report.html`. For an ensemble, `config`, `versions` and `pretrained` are None, and `checkpoint`
        is `{"members": [{"name", "folder", "which", "step", "epoch"}, ...]}`.
    """
    scheme = evaluation["label_scheme"]
    classes = [scheme["class_names"][label] for label in scheme["evaluated"]]
    sections = [
        [f"# {markdown_text(evaluation['name'])}", *_model(evaluation, classes)],
        ["## Use", *_use(evaluation, classes)],
        ["## Data", *_data(evaluation)],
        ["## Scores", *_scores(evaluation, classes)],
        ["## Limitations", *_list(caveats(evaluation) or ["None are known beyond those under “Use”."])],
        ["## Pretrained weights", *_pretrained(evaluation)],
        ["## Loading", *_loading(evaluation)],
        ["## Origin", *_origin(evaluation)],
    ]
    return "\n".join(line for section in sections for line in (*section, "")).rstrip("\n") + "\n"


def _model(evaluation, classes):
    yield ""
    yield (
        f"Network `{_code(evaluation['model'])}` of bcss_jax. It predicts a class for every pixel of an H&E image: "
        f"{markdown_text(', '.join(classes))} (label scheme {markdown_text(evaluation['label_scheme']['name'])})."
    )


def _use(evaluation, classes):
    data = evaluation["trained_on"] or evaluation["data"]
    yield from _list(
        [
            "For research on the segmentation of breast-cancer tissue, such as comparing methods.",
            "Not for diagnosis or any decision about a patient: it is not a medical device, and its safety as one has "
            "not been shown.",
            f"For RGB images at {data['mpp']} µm per pixel, the resolution that it was "
            f"{'trained' if evaluation['trained_on'] else 'evaluated'} at.",
            f"Its predictions are meaningless where the image shows none of these classes: {', '.join(classes)}.",
        ]
    )


def _data(evaluation):
    trained_on, data = evaluation["trained_on"], evaluation["data"]
    lines = [f"Trained on: {_described(trained_on)}." if trained_on else "Trained on: not known."]
    if trained_on and trained_on["content_sha256"] == data["content_sha256"]:
        lines.append(f"Evaluated on: {evaluation['part']} of the same data set.")
    else:
        lines.append(f"Evaluated on: {evaluation['part']} of {_described(data)}.")
    number = evaluation["scores"]["number"]
    lines.append(
        f"Scored: {number['images']:,} images (patients: {number['patients']}, institutes: {number['institutes']}) "
        f"with {number['pixels']:,} pixels of ground truth."
    )
    if any(each and each["layout"] in BCSS_LAYOUTS for each in (trained_on, data)):
        lines.append(
            "The folder has the layout of BCSS, which has the license CC0 1.0 (Amgad et al., Bioinformatics "
            "35(18):3461, 2019). It was not checked that the files are those of BCSS."
        )
    yield from _list(lines)


def _described(data):
    splits = ", ".join(
        f"{name} {count:,} images of patients: {data['patients'][name]}" for name, count in data["tiles"].items()
    )
    return (
        f"{data['layout']}, {data['split']} split ({splits}; patients in more than one split: "
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
        "Dice, IoU, precision and recall are computed from the pixels of all images together (dice_global, "
        "iou_global). Macro is the mean over the classes.",
        f"Intervals: bootstrap, {intervals['resamples']:,} resamples of {intervals['n']:,} {intervals['over']}.",
        f"HD95 and NSD (tolerance {found['surface']['tolerance_um']} µm) are means over images. An image where a "
        "class is missed or falsely predicted counts with its diagonal as HD95 and 0 as NSD.",
        f"Expected calibration error: {format_table_score(found['calibration']['ece'])}.",
        f"{tables.NOT_COMPARABLE}: {'; '.join(reasons)}." if reasons else f"{tables.COMPARABLE}.",
    ]
    fitted = evaluation["temperature"]
    reported = found["scores"].get("dice_report")
    if reported:
        iou = format_table_score(found["scores"]["iou_report"]["macro"])
        lines.append(
            "Scored as the report's own code does, which has one class more than it averages over: dice_report "
            f"{format_table_score(reported['macro'])}, iou_report {iou}."
        )
    if fitted:
        lines.append(
            f"Temperature {fitted['value']:.3f}, fitted on {fitted['pixels']:,} pixels of {fitted['fitted_on']}. "
            f"Calibration error of these pixels: {fitted['ece_before']:.3f} before, {fitted['ece_after']:.3f} after "
            "scaling."
        )
    yield from _list(lines)


def _pretrained(evaluation):
    pretrained = evaluation["pretrained"]
    yield ""
    if pretrained:
        imported = evaluation["trained_on"] is None and not evaluation["history"]
        yield (
            f"{'The weights are those of' if imported else 'Training started from'} `{_code(pretrained['file'])}` "
            f"(SHA-256 `{_code(pretrained['sha256'])}`){', and were not trained further' if imported else ''}. "
            + _license(pretrained)
        )
    elif evaluation["config"] is None:
        yield "Not recorded, because this is an ensemble; see its members."
    else:
        yield "None: training started from random weights."


def _license(pretrained):
    if not (pretrained.get("source") or pretrained.get("license")):
        return (
            "The source and license of these weights are not recorded. The license may apply to this model as well, so "
            "check it at the source of the file."
        )
    source, license = (pretrained.get(name) or "not recorded" for name in ("source", "license"))
    return markdown_text(
        f"Source: {source}. License: {license}. "
        "Names and shapes are those of the published network; whether the file is the published one was not checked."
    )


def _loading(evaluation):
    checkpoint = evaluation["checkpoint"]
    yield ""
    for one in (one for one in checkpoint.get("members", [checkpoint]) if "folds" in one):
        yield "```bash"
        yield f"python -m bcss_jax.nnunet predict --model={shlex.quote(one['folder'])} --images=FOLDER --out=FOLDER"
        yield "```"
        yield ""
        yield (
            f"nnU-Net's method, fold(s) {markdown_text(', '.join(one['folds']))}: each image is cropped and normalized "
            "separately and predicted in overlapping windows and mirrorings. The logits of the folds are averaged."
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
        yield f"model, metadata = checkpoint.load_model({json.dumps(one['folder'])}, {json.dumps(one['which'])})"
    yield "state = pretrained.to_torch_state(model)  # PyTorch's names -> NumPy arrays"
    yield "```"
    if "members" in evaluation["checkpoint"]:
        yield ""
        yield (
            "This is a cross-validation: each image was predicted by the network that was not trained on it."
            if evaluation["checkpoint"].get("cross_validation")
            else "This is an ensemble: its prediction is the mean of the probabilities of its members."
        )
    elif evaluation["config"]:
        yield ""
        mean, deviation = (json.dumps(evaluation["config"][name]) for name in ("image_mean", "image_std"))
        yield f"The model expects RGB values from 0 to 1, minus {mean}, divided by {deviation}, with channels last."


def _origin(evaluation):
    checkpoint = evaluation["checkpoint"]
    lines = [
        f"Checkpoint{' ' + one['name'] if 'name' in one else ''}: {one['which']}"
        + (", epoch not known" if one["epoch"] is None else f", epoch {one['epoch']}")
        for one in checkpoint.get("members", [checkpoint])
    ]
    lines.append(f"SHA-256 of the parameters: {evaluation['params_sha256']}")
    if evaluation["versions"]:
        lines.append(
            "Software versions during training: " + ", ".join(f"{k} {v}" for k, v in evaluation["versions"].items())
        )
    yield from _list(lines)


def _list(lines):
    yield ""
    for line in lines:
        yield f"- {markdown_text(line)}"


def _code(text):
    """Returns the text for use between two backticks, where Markdown has no escapes."""
    return " ".join(str(text).replace("`", "'").split())
