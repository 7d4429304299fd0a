"""What must be said beside the figures of an evaluation, in sentences: each follows from what is known about it."""

from bcss_jax.evaluation.statistics import bootstrap


def caveats(evaluation: dict) -> list[str]:
    """Reasons why the figures may say less than they seem to, the gravest first.

    Args:
      evaluation: as in `tables`, with `temperature` besides, as in `figures.reliability`.

    Returns:
      Sentences, as plain text.
    """
    return [
        *_about_the_data(evaluation["data"], evaluation["trained_on"], evaluation["part"]),
        *_about_the_images(evaluation["scores"]),
        *_about_the_classes(evaluation["label_scheme"], evaluation["scores"]),
        *_about_the_temperature(evaluation["temperature"]),
    ]


def _about_the_data(data, trained_on, part):
    if data["layout"] == "sample":
        yield (
            "Evaluated on the built-in sample, synthetic images drawn by this program: the figures say nothing about "
            "real tissue."
        )
    if trained_on is None:
        yield "What it was trained on is not known, so neither is whether it has seen these patients."
        return
    if trained_on["layout"] == "sample" and data["layout"] != "sample":
        yield "Trained on the built-in sample, synthetic images drawn by this program."
    if trained_on["content_sha256"] != data["content_sha256"]:
        yield "Trained on other data than it was evaluated on; whether the two share patients was not checked."
    elif part == "train":
        yield "Evaluated on the images that it was trained on: the figures say nothing about others."
    elif data["patients_in_two_parts"]:
        yield (
            f"Patients with images in more than one part of the {data['layout']} {data['split']} split: "
            f"{data['patients_in_two_parts']}. Where the model was trained on tissue of evaluated patients, the figures "
            "flatter it; a split by institute avoids that."
        )


def _about_the_images(scores):
    number, intervals = scores["number"], scores["intervals"]
    if number["patients"] == 1:
        yield "All images are of one patient: nothing follows for others."
    elif number["institutes"] == 1:
        yield "All images are of one institute, whose stain and scanner need not be those of others."
    if intervals["over"] == "images":
        yield (
            f"Intervals are over images, as there are fewer than {bootstrap.MIN_PATIENTS} patients. They are too narrow: "
            "images of one patient are not independent."
        )


def _about_the_classes(scheme, scores):
    evaluated = [scheme["class_names"][label] for label in scheme["evaluated"]]
    for name in evaluated:
        counts = scores["scores"]["images"][name]
        if not counts["present"]:
            yield f"No image has {name} in its truth: how well it is found is not known."
        elif counts["missed"]:
            yield f"Images with {name} in which it is missed altogether: {counts['missed']} of {counts['present']}."
        if counts["false"]:
            yield f"Images without {name} in which it is predicted all the same: {counts['false']}."
    if "other" not in evaluated:
        yield (
            f"Every pixel is called {' or '.join(evaluated)}, whatever it shows: there is no class for other tissue, and "
            "pixels without one of these as truth are not counted."
        )


def _about_the_temperature(temperature):
    if temperature and temperature["in_sample"]:
        yield (
            "The temperature was fitted on pixels of the evaluated images themselves: the calibration error with it "
            "flatters."
        )
