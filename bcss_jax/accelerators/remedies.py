"""What a user can try when a step does not fit into the memory of the devices."""

from collections.abc import Mapping, Sequence
from typing import Any

from bcss_jax.accelerators.computed_steps import REMAT, Line
from bcss_jax.accelerators.step_memory import images_that_fit, memory_line
from bcss_jax.common.device_memory import usable_memory
from bcss_jax.inference.slide_model import LAYOUT_WINDOWS
from bcss_jax.training.device_advice import half_type


def remedy_for_training(config: Any, devices: Sequence[Any]) -> str:
    """Returns what to try when training runs out of memory, such as "--config.micro_batches=4, or ...".

    Args:
      config: all settings of the run.
      devices: that share a batch.
    """
    line = _line(REMAT if config.remat else "train", config)
    remedies = [_more_micro_batches(config, line, devices), _remat(config, devices)]
    if "eval_batch_size" in config:  # evaluation may be what does not fit
        line = _line("evaluate", config)
        remedies.append(_smaller_batch("--config.eval_batch_size", config.eval_batch_size, line, devices))
    if config.dtype == "float32":
        remedies.append(f"--config.dtype={half_type(devices)} in a new run")
    return ", or ".join(remedy for remedy in remedies if remedy) or "devices with more memory"


def remedy_for_evaluation(batch: int, config: Mapping[str, Any], devices: Sequence[Any]) -> str:
    """Returns what to try when evaluation runs out of memory, such as "--batch_size=64 (...)".

    Args:
      batch: images, over all devices.
      config: settings of the run.
      devices: that share a batch.
    """
    return _smaller_batch("--batch_size", batch, _line("evaluate", config), devices) or "a smaller --batch_size"


def remedy_for_slides(batch: int, model: Mapping[str, Any], window: int, devices: Sequence[Any]) -> str:
    """Returns what to try when a batch of windows does not fit, such as "--batch_size=64 (...)".

    Args:
      batch: windows, over all devices.
      model: `model`, the network with its arguments, and `dtype`.
      window: side of the windows, in pixels.
      devices: that share a batch.
    """
    line = memory_line("slide", model.get("model", {}), model.get("dtype", "float32"), window)
    return _smaller_batch("--batch_size", batch, line, devices) or "a smaller --batch_size"


def _line(step: str, config: Mapping[str, Any]) -> Line | None:
    """Returns the memory of a step of a run. The network and the patches of nnU-Net's method stand in its plan."""
    if config.get("method") == "nnunet":
        return None
    data = config["data"]
    side = LAYOUT_WINDOWS[data["layout"]] if data["layout"] in LAYOUT_WINDOWS else data["patch_size"]
    return memory_line(step, config["model"], config["dtype"], side)


def _more_micro_batches(config: Any, line: Line | None, devices: Sequence[Any]) -> str:
    """Returns a setting with more micro-batches than now; "" if there is none that helps."""
    parts, memory = config.micro_batches, usable_memory(devices)
    share = config.batch_size // len(devices) if "batch_size" in config else 0  # nnU-Net's plan has the batch
    more = [each for each in range(parts + 1, share + 1) if share % each == 0]
    if not (line and memory and share):
        chosen = next(iter(more), 0) if share else 2 * parts
        return f"--config.micro_batches={chosen}" if chosen else ""
    chosen = next((each for each in more if share // each <= images_that_fit(line, memory)), 0)
    return f"--config.micro_batches={chosen} ({_computed(line, share // chosen, memory)})" if chosen else ""


def _remat(config: Any, devices: Sequence[Any]) -> str:
    """Returns the setting that computes more again; "" if it is set, or if the images do not fit with it either."""
    if config.remat:
        return ""
    line, memory = _line(REMAT, config), usable_memory(devices)
    if not (line and memory and "batch_size" in config):
        return "--config.remat=True"
    at_once = config.batch_size // len(devices) // config.micro_batches
    fits = at_once <= images_that_fit(line, memory)
    return f"--config.remat=True ({_computed(line, at_once, memory)})" if fits else ""


def _smaller_batch(option: str, batch: int, line: Line | None, devices: Sequence[Any]) -> str:
    """Returns a setting with fewer images than now; "" if as many as now fit, as computed."""
    memory = usable_memory(devices)
    if not (line and memory):
        return f"a smaller {option}"
    fit = images_that_fit(line, memory)
    if batch // len(devices) <= fit or not fit:
        return ""
    at_once = 1 << (fit.bit_length() - 1)
    return f"{option}={at_once * len(devices)} ({_computed(line, at_once, memory)})"


def _computed(line: Line, at_once: int, memory: float) -> str:
    need = line.fixed + at_once * line.per_image
    return f"needs {need / 1e9:.1f} of {memory / 1e9:.1f} GB a device: computed, not measured"
