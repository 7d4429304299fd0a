"""Changes the stain of slides into that of a model's training set: measured once a slide, changed window by window."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bcss_jax.data.stain.measured_stain import NotMeasurable
from bcss_jax.data.stain.stain_change import change_of, factors_of, reference_white
from bcss_jax.errors import ConfigError
from bcss_jax.inference.slide_model import SlideModel, WindowPredictor, with_changed_stain
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.tissue.slide_stain import stain_of_slide
from bcss_jax.slides.tissue.tissue_mask import Tissue
from bcss_jax.training.sharding import replicated

STAIN = KEEP_STAIN, NORMALIZE_STAIN = ("keep", "normalize")
MOST = 4.0  # largest factor, and inverse of the smallest: what is weaker or stronger is not the same kind of picture


@dataclasses.dataclass(frozen=True)
class NormalizedStain:
    """What becomes of the stain of one slide.

    Attributes:
      left_alone: what the slide has that forbids the change, or None.
      predictor: changes the stain and applies the model; None if the slide is left alone.
      description: JSON for the slide's summary.
    """

    left_alone: str | None
    predictor: WindowPredictor | None
    description: dict[str, Any]


class StainNormalizer:
    """A model that sees slides in the stain of its training set; compiled once for all slides.

    Attributes:
      target: the stain of the training set.
    """

    def __init__(self, model: SlideModel, weights: np.ndarray, batch_size: int, mesh: Mesh):
        """Compiles nothing yet; arguments as of `WindowPredictor`.

        Raises:
          ConfigError: the stain of the training set is not known.
        """
        if model.stain is None:
            raise ConfigError(
                f"--stain={NORMALIZE_STAIN}: {model.name} does not state the stain of its training images, as runs of "
                "earlier versions, imported networks, exported files and runs on images that are not H&E do not; name "
                f"a run that was trained with this version, or use --stain={KEEP_STAIN}"
            )
        self.target, self._model, self._mesh = model.stain, model, mesh
        self._predictor = WindowPredictor(with_changed_stain(model), weights, batch_size, mesh)

    def of_slide(
        self, pool: ReaderPool, tissue: Tissue, glass: np.ndarray | None, problem: str | None
    ) -> NormalizedStain:
        """Measures the stain of a slide.

        Args:
          pool: reads the slide.
          tissue: of the slide.
          glass: color of its glass, float [3]; None: unknown.
          problem: what rules out that it is H&E (`stain_check.out_of_domain`), or None.

        Raises:
          DataError: the slide cannot be read.
        """
        try:
            if problem:
                raise NotMeasurable(problem)
            stain = stain_of_slide(pool, tissue, reference_white(self.target, glass))
            factors = factors_of(stain, self.target)
            if any(not 1 / MOST <= factor <= MOST for factor in factors):
                raise NotMeasurable(f"a stain that factors of {factors[0]:.2g} and {factors[1]:.2g} would change")
        except NotMeasurable as error:
            return NormalizedStain(str(error), None, {"left_alone": str(error)})
        arrays = jax.device_put(change_of(stain, self.target), replicated(self._mesh)), self._model.arrays
        hematoxylin, eosin = factors
        description = {
            "from": stain.to_json(),
            "to": self.target.to_json(),
            "factors": {"hematoxylin": hematoxylin, "eosin": eosin},
        }
        return NormalizedStain(None, self._predictor.with_arrays(arrays), description)
