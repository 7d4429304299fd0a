"""The MODEL_CARD.md of an imported network before it is evaluated."""

from pathlib import Path

from bcss_jax.inference.imported.network import ImportedNetwork


def card(folder: Path, network: ImportedNetwork) -> str:
    """Returns the card, Markdown. Scores are left to `python -m bcss_jax.evaluate`, whose card has them too."""
    origin = network.origin
    scheme = network.scheme
    used = ", ".join(f"`{name}`" for name in network.passed_over[:20])
    more = f" and {len(network.passed_over) - 20} more" if len(network.passed_over) > 20 else ""
    if origin.trained_on:
        data = f"Trained by its publisher on {origin.trained_on}, so such images may be among its training images"
    else:
        data = "Training data: not known"
    lines = [
        f"# {folder.name}",
        "",
        f"Network `{network.name}` of bcss_jax with weights of another program (`--format={network.format}`). It "
        f"predicts a class for every pixel of an H&E image: {', '.join(scheme.evaluated_names)} (label scheme "
        f"{scheme.name}).",
        "",
        "## Use",
        "",
        "- For research only: not for diagnosis, nor for any decision about a patient.",
        f"- For RGB images at {network.mpp:g} µm per pixel. Slides are cut into windows of {network.window} pixels; "
        f"windows overlap by {network.overlap:.0%} of their side and are blended with `{network.blend}`. "
        "`python -m bcss_jax.segment` has options for other values.",
        "",
        "## Origin",
        "",
        f"- File: `{network.file}`, SHA-256 `{network.sha256}`; {network.tensors} tensors were loaded.",
        f"- Not used: {used}{more}." if used else "- All tensors of the file were used.",
        f"- Source: {origin.source or 'not known'}.",
        f"- License of the weights: {origin.license or 'not known; look at their source'}.",
        f"- {data}.",
    ]
    if origin.source:
        lines.append(
            "- The network has the names and shapes of the published one. Whether the file is the published one was "
            "not checked: compare the SHA-256 with that of your download."
        )
    lines += ["", "## Scores", "", "None were computed here. `python -m bcss_jax.evaluate` scores the run.", ""]
    return "\n".join(lines)
