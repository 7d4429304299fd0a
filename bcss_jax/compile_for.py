"""`python -m bcss_jax.compile_for`, the command in `bcss_jax.commands.compile_for`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("compile-for")
