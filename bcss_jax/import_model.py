"""`python -m bcss_jax.import_model`, the command in `bcss_jax.commands.import_model`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("import-model")
