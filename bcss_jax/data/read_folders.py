"""Names the folders of a data set that hold images, in which no command may write."""

from pathlib import Path

from bcss_jax.data.discovery import FOLDERS

RAW_FOLDERS = ("imagesTr", "labelsTr", "imagesVal", "labelsVal", "imagesTs", "labelsTs")  # of nnU-Net
_NAMES = {name for folders in FOLDERS.values() for images, masks, _ in folders for name in (images, masks)}


def read_folders(option: str, folder: Path) -> list[tuple[str, Path]]:
    """Returns the folder of a data set and its folders of images and masks that exist.

    Args:
      option: that names the data set, for messages.
      folder: of the data set.

    Returns:
      Pairs of a description and a folder; the data set itself is the first one.
    """
    found = [folder / name for name in (*_NAMES, *RAW_FOLDERS)]
    found += [inner / name for inner in folder.glob("*/") for name in _NAMES]  # BCSS/train and its like
    return [(option, folder), *((f"{option}/{path.relative_to(folder)}", path) for path in found if path.is_dir())]
