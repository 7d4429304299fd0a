"""Starts a training with prompts with the weights of another run: of a SAM with classes, or of one tuned to prompts."""

from pathlib import Path

from bcss_jax.errors import DataError, printable
from bcss_jax.models.sam.promptable import PromptableSam
from bcss_jax.models.sam.weights.description import SAM_FILE
from bcss_jax.models.weights.pretrained import load_pretrained, to_torch_state
from bcss_jax.models.weights.torch_layout import HasAdapters
from bcss_jax.training.checkpoint import trained_network
from bcss_jax.training.start.from_run import best_of_run, origin


def start_from_run(network: PromptableSam, folder: Path) -> dict:
    """Loads the best weights of a run, with its adapters merged.

    Args:
      network: changed in place.
      folder: of the run. Of a SAM with classes, prompts and masks are not taken.

    Returns:
      JSON for the checkpoint, as `models.weights.pretrained.load_pretrained` returns it; `file` is the name of the run.

    Raises:
      DataError: the folder holds no run, or one of another network.
    """
    if (folder / SAM_FILE).is_file():
        return load_pretrained(network, folder / SAM_FILE)
    trained = best_of_run(folder, ", or the folder of a run of configs/sam.py", "name another one")
    model = trained_network(trained)
    state = to_torch_state(model.merged() if isinstance(model, HasAdapters) else model)
    try:
        start = network.load_start(state)
    except DataError as error:
        raise DataError(f"{printable(folder)}: {error}") from error
    return {
        "part": start.part,
        "tensors": len(start.arrays),
        "passed_over": list(start.unused),
        "notes": list(start.notes),
        **origin(trained, folder),
    }
