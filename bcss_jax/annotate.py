"""`python -m bcss_jax.annotate`, the command in `bcss_jax.commands.annotate`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("annotate")
