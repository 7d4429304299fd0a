"""summary.json: the scores of a finished run, and everything that is needed to interpret them."""

import hashlib
import importlib.metadata
import platform

import jax
import numpy as np

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-cpu", "albumentations")


def params_sha256(params: dict) -> str:
    """Returns the SHA-256 of names, shapes and bytes of all parameters, sorted by name."""
    digest = hashlib.sha256()
    for path, value in sorted((jax.tree_util.keystr(path), value) for path, value in jax.tree.leaves_with_path(params)):
        value = np.asarray(value)
        digest.update(f"{path} {value.dtype} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def versions() -> dict:
    """Returns the versions of this program, Python, and the installed libraries that affect results."""
    from bcss_jax import __version__

    found = {"bcss_jax": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def device() -> dict:
    """Returns the kind and the number of JAX's devices and processes."""
    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def summary(*, name: str, metadata: dict, record, scheme, params: dict, stopped_early: bool, test: dict) -> dict:
    """Returns the content of summary.json.

    Args:
      name: of the system.
      metadata: of the last checkpoint: config, data, device and versions.
      record: the finished `history.RunRecord`, with at least one epoch.
      scheme: `labels.LabelScheme`.
      params: the final parameters.
      stopped_early: whether training ended before `config.epochs`.
      test: `metrics.scores` of the test split with the "best" and the "last" parameters; empty if there is none.

    Returns:
      JSON. The scores at the top level are those of the validation split with the parameters of the best epoch, whose
      checkpoint is kept; `last_epoch` has the scores of the final parameters.
    """
    best, last = record.best() or record.history[-1], record.history[-1]
    return {
        "name": name,
        "split": "val",
        **best["scores"],
        "best_epoch": best["epoch"],
        "val_loss": best["val_loss"],
        "last_epoch": {"epoch": last["epoch"], "val_loss": last["val_loss"], **last["scores"]},
        **({"test": test} if test else {}),
        "stopped_early": stopped_early,
        "seconds": round(record.seconds, 3),
        "bad_steps": record.bad_steps,
        "empty_steps": record.empty_steps,
        **(
            {"skipped_by_loss_scale": record.skipped_by_loss_scale}
            if metadata["config"].get("dtype") == "float16"
            else {}
        ),
        "params_sha256": params_sha256(params),
        "parameters": int(sum(np.prod(value.shape) for value in jax.tree.leaves(params))),
        "label_scheme": scheme.to_json(),
        "argmax_over": list(scheme.evaluated_names),
        "data": metadata["data"],
        "pretrained": metadata["pretrained"],
        "device": metadata["device"],
        "versions": metadata["versions"],
        "config": metadata["config"],
    }
