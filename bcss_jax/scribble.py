"""`python -m bcss_jax.scribble`, the command in `bcss_jax.commands.scribble`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("scribble")
