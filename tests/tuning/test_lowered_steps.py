import jax
import pytest
from helpers.sam_small import use_small_sams

from bcss_jax.errors import ConfigError
from bcss_jax.training.sharding import make_mesh
from bcss_jax.tuning.lowered_steps import lower_step


def lowered(name, **changes):
    settings = {"image_size": 32, "batch": 2, "micro_batches": 1, "remat": False, "dtype": "float32"} | changes
    return lower_step(name, "tiny", **settings, mesh=make_mesh(jax.devices()[:1]))


@pytest.mark.parametrize(
    ("name", "moments_of_all"), [("tune_frozen", False), pytest.param("tune", True, marks=pytest.mark.slow)]
)
def test_a_step_is_traced_without_arrays(monkeypatch, name, moments_of_all):
    use_small_sams(monkeypatch)
    state = lowered(name).out_info[0]
    params, optimizer = (sum(x.size for x in jax.tree.leaves(part)) for part in (state.params, state.opt_state))
    assert (optimizer >= 2 * params) == moments_of_all and optimizer > params / 2


def test_a_batch_that_does_not_divide_is_refused(monkeypatch):
    use_small_sams(monkeypatch)
    with pytest.raises(ConfigError, match="--batch"):
        lowered("tune", batch=3, micro_batches=2)
