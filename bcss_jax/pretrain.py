"""`python -m bcss_jax.pretrain`, the command in `bcss_jax.commands.pretrain`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("pretrain")
