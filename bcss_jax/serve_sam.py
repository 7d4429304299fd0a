"""`python -m bcss_jax.serve_sam`, the command in `bcss_jax.commands.serve_sam`."""

from bcss_jax import cli

if __name__ == "__main__":
    cli.start("serve-sam")
