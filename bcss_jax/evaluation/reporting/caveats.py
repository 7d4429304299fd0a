"""Writes the caveats of an evaluation as sentences. Each one follows from facts in the evaluation."""

from bcss_jax.data import names
from bcss_jax.evaluation.statistics import bootstrap
from bcss_jax.labels import unchecked_scheme


def caveats(evaluation: dict) -> list[str]:
    """Returns reasons to read the scores with caution, the most serious first.

    Args:
      evaluation: as in `tables`, with `temperature` as in `figures.reliability`.

    Returns:
      Sentences, as plain text.
    """
    return [
        *_about_the_data(evaluation["data"], evaluation["trained_on"], evaluation["part"]),
        *_about_imported_weights(evaluation.get("pretrained") or {}),
        *_about_the_images(evaluation["scores"]),
        *_about_the_classes(evaluation["label_scheme"], evaluation["scores"]),
        *_about_the_temperature(evaluation["temperature"]),
    ]


def _about_the_data(data, trained_on, split):
    if data["layout"] == "sample":
        yield (
            "Evaluated on the built-in sample, which consists of synthetic images: the scores say nothing about real "
            "tissue."
        )
    if trained_on is None:
        yield "The training data are not known, so the model may have been trained on these patients."
        return
    if trained_on["layout"] == "sample" and data["layout"] != "sample":
        yield "Trained on the built-in sample, which consists of synthetic images."
    if trained_on["content_sha256"] != data["content_sha256"]:
        yield "Trained and evaluated on different data sets; whether they share patients was not checked."
    elif split == "train":
        yield "Evaluated on the images that it was trained on: the scores say nothing about other images."
    elif data["patients_in_two_parts"]:
        yield (
            f"Patients with images in more than one split ({data['layout']}, {data['split']} split): "
            f"{data['patients_in_two_parts']}. The scores are too optimistic if the model was trained on other images "
            "of the evaluated patients; dividing the data by institute avoids this."
        )


def _about_imported_weights(pretrained):
    if pretrained.get("trained_on"):
        yield (
            f"The publisher of the weights trained them on {pretrained['trained_on']}. If the evaluated images or "
            "patients are among those, the scores are too optimistic."
        )


def _about_the_images(scores):
    number, intervals = scores["number"], scores["intervals"]
    if number["patients"] == 1:
        yield "All images come from one patient: the scores say nothing about other patients."
    elif names.NOT_SAID in scores.get("by_institute", ()):
        yield "The institutes of some images are not known; stains and scanners of other institutes may differ."
    elif number["institutes"] == 1:
        yield "All images come from one institute; stains and scanners of other institutes may differ."
    if intervals["over"] == "images":
        yield (
            f"Intervals are over images, because there are fewer than {bootstrap.MIN_PATIENTS} patients. They are too "
            "narrow, because images of the same patient are not independent."
        )


def _about_the_classes(scheme, scores):
    evaluated = [scheme["class_names"][label] for label in scheme["evaluated"]]
    for name in evaluated:
        counts = scores["scores"]["images"][name]
        if not counts["present"]:
            yield f"No image contains {name} in its ground truth, so it is not known how well {name} is found."
        elif counts["missed"]:
            yield f"Images with {name} in which no pixel of it is found: {counts['missed']} of {counts['present']}."
        if counts["false"]:
            yield f"Images without {name} in which {name} is predicted: {counts['false']}."
    if unchecked_scheme(scheme).ignores_tissue:
        yield (
            f"Every pixel is predicted as {' or '.join(evaluated)}: there is no class for other tissue. Pixels with "
            "another ground truth are not counted."
        )


def _about_the_temperature(temperature):
    if temperature and temperature["in_sample"]:
        yield (
            "The temperature was fitted on pixels of the evaluated images, so the calibration error after scaling is "
            "too optimistic."
        )
