"""`python -m bcss_jax.export`, the command in `bcss_jax.commands.export`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("export")
