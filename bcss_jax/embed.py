"""`python -m bcss_jax.embed`, the command in `bcss_jax.commands.embed`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("embed")
