import importlib.util

import pytest

from bcss_jax.accelerators.targets import TARGETS, describe_devices, find_target
from bcss_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "name", "count"), [("h100", "h100", 0), ("v5e", "v5e", 0), ("v5e:2x2", "v5e", 4), ("v5p:2x2x1", "v5p", 4)]
)
def test_targets_and_slices(text, name, count):
    assert find_target(text) == (TARGETS[name], count)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h1000", "the targets are h100, a100"),
        ("h100:2x2", "--target=h100 --devices=NUMBER"),
        ("v5e:3x3", "1x1, 2x2, 2x4"),
        ("v5p:2x2", "1x1x1, 2x2x1"),
    ],
)
def test_a_target_that_does_not_exist(text, message):
    with pytest.raises(ConfigError, match=message):
        find_target(text)


def test_a_slice_has_so_many_chips():
    with pytest.raises(ConfigError, match="--devices=3: slices of TPU v5e have one of 1, 4, 8"):
        describe_devices(TARGETS["v5e"], 3)


@pytest.mark.parametrize(
    ("target", "module", "extra"), [("h100", "jax_cuda13_plugin", "compile-cuda"), ("v5e", "libtpu", "compile-tpu")]
)
def test_without_a_compiler_the_extra_is_named(target, module, extra):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    with pytest.raises(ConfigError, match=rf"pip install 'bcss_jax\[{extra}\]'"):
        describe_devices(TARGETS[target], 1)


def test_bytes_per_operation_are_those_of_such_cards():
    """A digit too many or too few in the table shows here."""
    for target in TARGETS.values():
        fastest = max(target.peaks.values())
        assert 100 < fastest / target.bandwidth < 700, target.name
        assert 1.4e10 < target.usable < target.memory < 1.1e11 or target.name in ("t4", "v100"), target.name
