"""`python -m bcss_jax.prompt`, the command in `bcss_jax.commands.prompt`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("prompt")
