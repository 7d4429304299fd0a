"""The command `python -m bcss_jax.models`."""

import pytest

from bcss_jax import models
from bcss_jax.errors import ConfigError
from bcss_jax.models import __main__ as sizes


def test_help_and_unknown_options_measure_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sizes, "print_table", lambda: pytest.fail("measured"))
    with pytest.raises(SystemExit) as ended:
        sizes.main(["--help"])
    assert ended.value.code == 0 and "python -m bcss_jax.models" in capsys.readouterr().out
    assert sizes.main(["--nework=unet"]) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --nework=unet; see --help\n"


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        ("unet", {"width": 10**30}, "width must be a positive integer of at most 65536"),
        ("unet", {"depth": 60000}, "depth must be a positive integer of at most 16"),
        ("unet", {"width": 65536}, "parameters with these arguments; at most 2e"),
        ("dense_unet", {"layers": (10**6,)}, "layers must be one or more positive integers, at most 256"),
        ("transunet", {"width_factor": float("inf")}, "width_factor must be a multiple of"),
        ("transunet", {"num_layers": 10**6}, "num_layers must be a positive integer of at most 256"),
    ],
)
def test_networks_that_fit_into_no_memory_are_refused(name, arguments, said):
    with pytest.raises(ConfigError, match=said):
        models.check_size(name, num_classes=3, **arguments)
    models.check_size(name, num_classes=3)
