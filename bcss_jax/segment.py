"""`python -m bcss_jax.segment`, the command in `bcss_jax.commands.segment`.

To `import bcss_jax.segment`, this is the function: Python binds what it finds under the name of a module to the
attribute of the package, which is to stay the function.
"""

import sys

import bcss_jax
from bcss_jax import cli

if __name__ == "__main__":
    cli.start("segment")
elif __name__ == "bcss_jax.segment":
    vars(sys)["modules"][__name__] = bcss_jax.segment
