"""`python -m bcss_jax.view`, the command in `bcss_jax.commands.view`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("view")
