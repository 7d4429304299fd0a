"""Damages checkpoints: a wrong bit, an edit, a missing file; what is loaded is sound, or nothing is."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import isolated
import jax
import numpy as np
from inputs import Inputs
from trials import Outcome

from bcss_jax.training.checkpoint import load_trained
from bcss_jax.training.sharding import make_mesh

AT_ONCE = 20


def outcomes(source: Inputs, rounds: int, seed: int, keep: Path, only: str) -> Iterator[Outcome]:
    """Damages the run's checkpoints `rounds` times, in one file each time, and loads what `evaluate` would load."""
    steps = sorted(path.name for path in (source.run / "checkpoints").iterdir() if path.name.isdecimal())
    sound = [_sound(source, step) for step in steps]
    rng = np.random.default_rng((seed, 1))
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        for first in range(0, rounds, AT_ONCE):
            made = [_damaged(source, Path(folder) / str(n), rng) for n in range(first, min(first + AT_ONCE, rounds))]
            made = [(path, what) for path, what in made if only in what]
            ended = isolated.call_all([_loader(path) for path, _ in made], limit=60)
            for (path, what), returned in zip(made, ended, strict=True):
                fault = isolated.fault_of(returned)
                if not fault and not returned.code and returned.value not in sound:
                    fault = "loads something that was never saved"
                if fault:
                    shutil.copytree(path, keep / f"checkpoint_{path.name}", dirs_exist_ok=True)
                shutil.rmtree(path)
                faults = (fault,) if fault else ()
                yield Outcome("damaged checkpoints", what, returned.code, returned.line[:200], returned.seconds, faults)


def _sound(source: Inputs, step: str) -> str:
    """Returns the digest of what the checkpoint of one step holds."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        alone = Path(folder) / "checkpoints"
        shutil.copytree(source.run / "checkpoints" / step, alone / step)
        (returned,) = isolated.call_all([_loader(Path(folder))], limit=60)
    if returned.code:
        raise RuntimeError(f"the sound checkpoint {step} cannot be read: {returned.line}")
    return str(returned.value)


def _loader(folder: Path) -> Callable[[], str]:
    def load() -> str:
        trained = load_trained(folder / "checkpoints", make_mesh(jax.local_devices()))
        digest = hashlib.sha256(json.dumps(trained.metadata, sort_keys=True, default=str).encode())
        for leaf in jax.tree.leaves((trained.params, trained.model_state)):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()

    return load


def _damaged(source: Inputs, folder: Path, rng: np.random.Generator) -> tuple[Path, str]:
    shutil.copytree(source.run / "checkpoints", folder / "checkpoints")
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with_content = [path for path in paths if path.stat().st_size]
    path = with_content[int(rng.integers(len(with_content)))]
    kind = str(rng.choice(["bit", "bit", "bit", "cut", "delete", "empty", "empty step", "half step"]))
    content = bytearray(path.read_bytes())
    if kind == "bit":
        place = int(rng.integers(len(content)))
        content[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[: int(rng.integers(len(content)))])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "delete":
        path.unlink()
    else:
        step = folder / "checkpoints/999"
        step.mkdir()
        if kind == "half step":
            shutil.copytree(path.parents[len(path.relative_to(folder).parts) - 3] / "params", step / "params")
        return folder, kind
    return folder, f"{kind} in {path.relative_to(folder / 'checkpoints')}"
