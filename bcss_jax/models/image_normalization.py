"""What images are normalized with before they enter a network."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ImageStatistics:
    """Mean and standard deviation of RGB values between 0 and 1, by which images are normalized for a network."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# Of the ImageNet training set; all ImageNet weights of torchvision, timm and smp expect images normalized with them.
IMAGENET = ImageStatistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
