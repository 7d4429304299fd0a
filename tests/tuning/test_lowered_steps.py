import jax
import pytest
from helpers.sam_small import use_small_sams

from bcss_jax.errors import ConfigError
from bcss_jax.training.sharding import make_mesh
from bcss_jax.tuning.lowered_steps import lower_step


def lowered(name, **changes):
    settings = {"image_size": 32, "batch": 2, "micro_batches": 1, "dtype": "float32"} | changes
    return lower_step(name, "tiny", **settings, mesh=make_mesh(jax.devices()[:1]))


def test_steps_are_traced_without_arrays_and_a_frozen_encoder_has_no_moments(monkeypatch):
    use_small_sams(monkeypatch)
    states = [lowered(name).out_info[0] for name in ("tune", "tune_frozen")]
    sizes = [[sum(x.size for x in jax.tree.leaves(part)) for part in (s.params, s.opt_state)] for s in states]
    assert sizes[0][0] == sizes[1][0] and sizes[1][1] < sizes[0][1]


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    use_small_sams(monkeypatch)
    with pytest.raises(ConfigError, match="--batch"):
        lowered("tune", batch=3, micro_batches=2)
