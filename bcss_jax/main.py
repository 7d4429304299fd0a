"""`python -m bcss_jax.main`, the command in `bcss_jax.commands.train`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("train")
