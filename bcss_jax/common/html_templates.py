"""Renders HTML from the Jinja templates of a package."""

from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined


def template_environment(package: str, **filters: Callable) -> Environment:
    """Returns an environment that loads `templates/` of a package, escapes all values and refuses undefined ones.

    Args:
      package: for example "bcss_jax.viewer".
      **filters: functions that the templates use as filters, by name.
    """
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment
