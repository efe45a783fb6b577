"""What a data set consists of."""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """images: uint8 [N, 32, 32, 3], or the paths of N files as bytes [N]; labels: int64 [N]."""

    images: np.ndarray
    labels: np.ndarray

    @property
    def in_files(self) -> bool:
        """Whether ``images`` are paths."""
        return self.images.dtype.kind == "S"

    def take(self, rows: np.ndarray) -> "Split":
        """The images and labels of these rows."""
        return Split(self.images[rows], self.labels[rows])


class Data(NamedTuple):
    """A data set.

    train: None if only the test images were asked for.
    held_out: images of the data set's own that choose the best epoch, if it has any.
    mean, std: of each channel, for pixels between 0 and 1. Empty: they are measured on the training images.
    flip: a mirrored image keeps its class.
    large: images are 224x224, prepared as ImageNet's, and always streamed.
    """

    train: Split | None
    test: Split
    classes: list[str]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    flip: bool = True
    large: bool = False
    held_out: Split | None = None
