"""Pretrains a vision transformer on images without labels: `python -m bcss_jax.pretrain --config=configs/dino.py`.

The same command resumes a run that was interrupted. Exit codes: 0 done, 2 settings, 3 data, 4 numbers (also when all
images look alike to the network), 5 storage, 75 stopped on request (run the same command again).
"""

from bcss_jax.api.pretraining import check_config, pretrain
from bcss_jax.commands import _run_options


def main() -> int:
    """Parses the command line and pretrains. Returns the exit code."""
    return _run_options.main(__doc__, "bcss_jax/pretraining/config.py", "configs/dino.py", pretrain, check_config)
