"""`python -m bcss_jax.evaluate`, the command in `bcss_jax.commands.evaluate`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("evaluate")
