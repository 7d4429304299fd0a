"""Compares what two runs of one command wrote: the parts that must not differ."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

SESSION = ("seconds", "peak_memory_mb", "resumed", "identity", "slide", "versions")  # of a slide's summary


def of_segmentation(folder: Path) -> dict[str, str]:
    """Returns a digest of every result of a slide, and its summary without what differs between sessions and places."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or ".lock" in name:
            continue
        if path.name == "summary.json":
            summary = json.loads(path.read_text())
            content = json.dumps({k: v for k, v in summary.items() if k not in SESSION}, sort_keys=True).encode()
        elif path.suffix in (".csv", ".log"):
            continue
        else:
            content = path.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def of_training(folder: Path) -> dict[str, str]:
    """Returns a digest of every array of a run's last checkpoint, which has to be computed in a process of its own."""
    steps = [path for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()]
    last = max(steps, key=lambda path: int(path.name))
    found = {"step": last.name}
    for item in ("params", "rest", "optimizer"):
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.restore(last / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[item + jax.tree_util.keystr(path)] = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
    return found


def different(found: dict[str, str], expected: dict[str, str]) -> str:
    """Returns in which names two digests differ, or ""."""
    names = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    return f"{len(names)} of {len(expected)} parts differ: {', '.join(names[:4])}" if names else ""
