"""`python -m bcss_jax.doctor`, the command in `bcss_jax.commands.doctor`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("doctor")
