import jax
import pytest
from helpers.sam_small import use_small_sams

from bcss_jax.errors import ConfigError
from bcss_jax.prompting.lowered_steps import STEPS, lower_step
from bcss_jax.training.sharding import make_mesh


def lowered(name, encoder, image_size=64, **changes):
    settings = {"image_size": image_size, "batch": 3, "dtype": "float32"} | changes
    return lower_step(name, encoder, **settings, mesh=make_mesh(jax.devices()[:1]))


@pytest.mark.parametrize("encoder", ["tiny", "tiny2"])
def test_encoding_and_decoding_are_traced_without_arrays(monkeypatch, encoder):
    use_small_sams(monkeypatch)
    features, (several, single) = (lowered(name, encoder).out_info for name in STEPS)
    rows = features.embedding.shape[1]
    assert features.embedding.shape == (3, rows, rows, 256)
    assert several[0].shape == (3, 3, 4 * rows, 4 * rows) and several[1].shape == (3, 3)
    assert single[0].shape == (3, 1, 4 * rows, 4 * rows)


def test_a_size_that_the_network_does_not_take_is_refused(monkeypatch):
    use_small_sams(monkeypatch)
    with pytest.raises(ConfigError, match="multiple of"):
        lowered("encode", "tiny2", image_size=40)
