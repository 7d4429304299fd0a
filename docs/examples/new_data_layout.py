"""A new data layout: the folders of the images and masks of each split, and the code book of the masks."""

from bcss_jax.data import discovery

discovery.FOLDERS["own"] = (
    ("training/images", "training/masks", "train"),
    ("validation/images", "validation/masks", "val"),
)
discovery.SUBFOLDER["own"] = "."  # the folders lie in the data folder itself
discovery.CODES["own"] = "bcss22"  # the 22 codes of BCSS
