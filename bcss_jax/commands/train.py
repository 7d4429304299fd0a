"""Trains a system: `python -m bcss_jax.main --config=configs/unet.py [--workdir=runs/unet]`.

The same command resumes a run that was interrupted. Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage,
75 stopped on request (run the same command again).
"""

from bcss_jax.api.training import check_config, train
from bcss_jax.commands import _run_options


def main() -> int:
    """Parses the command line and trains. Returns the exit code."""
    return _run_options.main(__doc__, "bcss_jax/config.py", "configs/unet.py", train, check_config)
