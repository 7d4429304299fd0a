"""`python -m bcss_jax.segment`, the command in `bcss_jax.commands.segment`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("segment")
