import jax
import pytest

from bcss_jax.errors import ConfigError
from bcss_jax.pretraining.config import recipe
from bcss_jax.pretraining.lowered_step import lower_step
from bcss_jax.pretraining.visual_words import CLUSTERS, WORDS
from bcss_jax.training.sharding import make_mesh


def config_of(argument):
    config = recipe(argument)
    config.update(encoder="vit_tiny16", batch_size=8)
    config.data.tile_size = 128
    return config


@pytest.mark.parametrize(
    "argument,targets,words",
    [pytest.param("tiles,few", 1, 0.0, marks=pytest.mark.slow), ("tiles,few,dinov2", 2, 1.0)],
)
def test_a_step_is_traced_without_arrays(argument, targets, words):
    config = config_of(argument)
    config.objective.words_weight = words
    lowered = lower_step(config, make_mesh(jax.devices()))
    shapes = [x.shape for x in jax.tree.leaves(lowered.out_info) if x.ndim == 2]
    assert shapes.count((4096, 256)) == targets * 4  # student, teacher, and two moments
    assert shapes.count((192, CLUSTERS)) == (4 if words else 0)
    assert shapes.count((CLUSTERS, WORDS)) == (1 if words else 0)


def test_a_batch_that_does_not_divide_is_refused():
    config = config_of("tiles,few")
    config.batch_size = 12
    with pytest.raises(ConfigError, match="does not divide over 8 devices"):
        lower_step(config, make_mesh(jax.devices()))
