"""What is known of a data set: mean and deviation. Its division: --train_size, --val_size."""

import time

import numpy as np
import pytest
from image_data import random_data

from data_loader import Data, Split, dataloader
from loading.data import divide, map_blocks
from runtime.errors import UserError


def test_mean_and_deviation():
    """A constant channel gets the deviation of one level, so that it can be divided by it."""
    data = random_data(7)._replace(mean=(), std=())
    data.train.images[..., 1] = 51
    (mean, std), images = data.mean_and_std(0), data.train.images / 255
    assert mean == pytest.approx(images.mean((0, 1, 2)), abs=0.50001e-4)
    assert std == (round(images[..., 0].std(), 4), 0.0039, round(images[..., 2].std(), 4))


def test_the_rest_is_not_decoded_after_ctrl_c():
    taken = []

    def interrupted(block):
        taken.append(len(block))
        time.sleep(0.03)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        map_blocks(interrupted, random_data(256 * 100).train, 32, 1)
    assert len(taken) < 50


# --- sizes. An image is its number here

LABELS = np.random.default_rng(0).choice(5, 400, p=[0.4, 0.3, 0.15, 0.1, 0.05])


def parts(train_size, val_size, seed=0, labels=LABELS):
    """-> the numbers of the training images, and of the held-out ones."""
    data = Data(Split(np.arange(len(labels)), labels), classes=["blue", "red", "green", "grey", "black"])
    train, held_out = divide(data, train_size, val_size, seed)
    for split in (train, held_out) if held_out else (train,):
        assert np.array_equal(split.labels, labels[split.images]) and (np.diff(split.images) > 0).all()
    return train.images.tolist(), held_out and held_out.images.tolist()


def assert_stratified(numbers, tolerance=1):
    expected = np.bincount(LABELS) * len(numbers) / len(LABELS)
    assert np.abs(np.bincount(LABELS[numbers], minlength=5) - expected).max() <= tolerance


def test_held_out_images_are_stratified_and_chosen_by_the_seed():
    """The training images and the held-out images together are all images. Of a seed the lower 32 bits count."""
    assert parts(0, 0) == (list(range(400)), None)
    train, held_out = parts(0, 60, seed=1)
    assert len(held_out) == 60 and sorted(train + held_out) == list(range(400))
    assert_stratified(held_out)
    assert parts(0, 60, seed=1 + 2**32)[1] == held_out != parts(0, 60, seed=2)[1]


@pytest.mark.parametrize("size", [5, 14, 159, 400])
def test_which_images_a_train_size_takes(size):
    """The first of each class in the order of seed 0. Then, of all others, those that are earliest in their class."""
    order, ranked = np.random.RandomState(0).permutation(400).tolist(), []
    for label in range(5):
        members = [i for i in order if LABELS[i] == label]
        ranked += [((k + 0.5) / len(members) if k else 0, label, i) for k, i in enumerate(members)]
    train, _ = parts(size, 0, seed=3)
    assert train == sorted(i for *_, i in sorted(ranked)[:size])
    assert size == 5 or assert_stratified(train, 1.5) is None


@pytest.mark.parametrize("val_size", [50, 150])
def test_held_out_images_are_not_among_the_train_size(val_size):
    """They come from the rest, and may be all of it. The seed chooses them, but not the training images."""
    train, held_out = parts(250, val_size, seed=1)
    assert len(held_out) == val_size and not set(train) & set(held_out)
    assert_stratified(held_out, 1.5)
    assert parts(250, val_size, seed=1 + 2**32) == (train, held_out)
    again, others = parts(250, val_size, seed=65)
    assert again == train and (others == held_out) == (val_size == 150)


def test_rare_classes_are_trained_on():
    train, held_out = parts(81, 100, labels=np.array([0] * 500 + [1] * 300 + [2]))
    assert (np.array(train) >= 800).sum() == 1 and len(held_out) == 100


@pytest.mark.parametrize(("train_size", "val_size", "message"), [
    (0, 1, "--val_size must lie between the 2 classes and the 40 training images, not 1"), (0, 40, "not 40"),
    (0, -3, "not -3"), (0, 39, "--val_size 39 leaves 1 training images for 2 classes: it must be at most 38"),
    (1, 0, "--train_size must lie between the 2 classes and the 40 training images, not 1"), (41, 0, "not 41"),
    (-3, 0, "--train_size .*not -3"), (30, 11, "--val_size must .*10 training images that --train_size 30 leaves"),
    (40, 2, "the 0 training images that --train_size 40 leaves, not 2")])
def test_sizes_must_fit(train_size, val_size, message):
    with pytest.raises(UserError, match=message):
        parts(train_size, val_size, labels=np.array([0, 1] * 20))


def test_val_size_needs_two_images_of_each_class():
    with pytest.raises(UserError, match="only one training image of red: add images.*leave out --val_size"):
        parts(0, 5, labels=np.array([0] * 20 + [1]))


def test_a_batch_must_fit_the_images_that_are_left(image_folder):
    with pytest.raises(UserError, match="between 1 and the 30 training images"):
        dataloader("folder", 31, 0, image_folder(), val_size=10)
