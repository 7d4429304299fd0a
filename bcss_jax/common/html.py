"""Templates of HTML pages."""

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def html_environment(package: str, finalize: Callable[[Any], Any] | None = None) -> Environment:
    """Returns the templates of a package, which escape what is put into them.

    Args:
      package: its templates are in the folder `templates`, for example "bcss_jax.viewer".
      finalize: called for every value before it is escaped.
    """
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
