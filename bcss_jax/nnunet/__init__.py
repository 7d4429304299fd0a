"""nnU-Net: a method that plans the network, patches and training from the data set, here for 2D RGB images.

Source: Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z) and 2024 (arXiv:2404.09556) in the form of nnU-Net 2.8.1.
The files follow the steps of the method: `fingerprint`, `plan` (with `topology`), `preprocess`, `patches`, `augment`,
`train`, `predict`, `ensemble`, `postprocess`. Fingerprints, plans and data set descriptions are plain dicts, as in the
JSON files of nnU-Net.
"""

from bcss_jax.nnunet.fingerprint import extract_fingerprint
from bcss_jax.nnunet.plan import make_plan

__all__ = ["extract_fingerprint", "make_plan"]
