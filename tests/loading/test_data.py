"""What is known of a data set: mean and deviation, images of one colour. Its division: --train_size, --val_size."""

import re

import numpy as np
import pytest
import torch
from image_data import random_data, same_batches
from PIL import Image

import data_loader
from data_loader import Split, dataloader
from loading.data import proportional
from runtime.errors import UserError


def test_mean_and_deviation():
    """A constant channel gets the deviation of one level, so that it can be divided by it."""
    data = random_data(7)._replace(mean=(), std=())
    found, images = data.measured(0), data.train.images / 255
    assert found.mean == pytest.approx(images.mean((0, 1, 2)), abs=0.50001e-4)
    assert found.std == pytest.approx(images.std((0, 1, 2)), abs=0.50001e-4)
    assert all(round(value, 4) == value for value in found.mean + found.std)
    data.train.images[..., 1] = 51
    found = data.measured(0)
    assert (found.mean[1], found.std[1]) == (0.2, 0.0039) and found.std[0] > 0.2


def test_any_number_of_threads_gives_the_same_images(image_folder):
    root = image_folder()
    a, b = (dataloader("folder", 8, workers, root)[0] for workers in (0, 4))
    assert a.images.equal(b.images) and a.labels.equal(b.labels) and a.mean == b.mean


@pytest.mark.parametrize(("name", "options"), [("folder", {}), ("imagenet", {})])
def test_images_of_a_single_value_get_a_warning(image_folder, capsys, name, options):
    root = image_folder(train=3, test=2)
    dataloader(name, 2, 0, root, **options)
    assert capsys.readouterr().err == ""
    for i, file in enumerate(sorted((root / "test").rglob("*.*"))):
        Image.new("RGB", (40, 36), (i, 9, 200)).save(file)
    mean, std = dataloader(name, 2, 0, root, **options)[0].mean, (0.2, 0.2, 0.2)
    assert re.fullmatch(f"warning: each of the test images of {name} has one colour .*\n", capsys.readouterr().err)
    data_loader.test_images(name, 2, 0, root, mean=mean, std=std, **options)
    assert "warning: each of the test images" in capsys.readouterr().err
    for file in (root / "train").rglob("*.*"):
        Image.new("L", (40, 36)).save(file)
    dataloader(name, 2, 0, root, **options)
    assert "each of the training and test images" in capsys.readouterr().err


def rows(images):
    return [bytes(image) for image in images.reshape(len(images), -1).numpy()]


def trained_on(loader):
    return rows(loader.images[:, 4:-4, 4:-4])


def trained_order(loader):
    return loader.augmentation_parameters()[0]


def test_held_out_images_are_stratified_and_not_augmented():
    """The training images and the held-out images together are all training images, each once."""
    whole, _ = dataloader("DIGITS", 64)
    train, test = dataloader("DIGITS", 64, val_size=200, seed=3)
    held_out = train.held_out
    assert (train.num_images, held_out.num_images, test.num_images) == (1237, 200, 360)
    assert whole.held_out is None and held_out.held_out is None and test.held_out is None
    expected = torch.bincount(whole.labels) * 200 / 1437
    assert (torch.bincount(held_out.labels) - expected).abs().max() <= 1
    assert sorted(trained_on(train) + rows(held_out.images)) == sorted(trained_on(whole))
    first, again = torch.cat([x for x, _ in held_out]), torch.cat([x for x, _ in held_out])
    assert first.equal(again) and first.equal(held_out.normalise(held_out.images))


@pytest.mark.parametrize("train_size", [0, 1000])
def test_the_seed_chooses_the_held_out_images(train_size):
    """Of a seed of more than 32 bits the lower ones."""
    small, equal, other = (dataloader("DIGITS", 64, val_size=50, train_size=train_size, seed=s)[0].held_out.images
                           for s in (1, 1 + 2**32, 65))
    assert small.equal(equal) and not small.equal(other)


@pytest.mark.parametrize(("size", "message"), [
    (1, "between the 2 classes and the 40 training images, not 1"), (40, "not 40"), (400, "not 400"), (-3, "not -3"),
    (39, "--val_size 39 leaves 1 training images for 2 classes: it must be at most 38")])
def test_val_size_must_fit(image_folder, size, message):
    root = image_folder()
    with pytest.raises(UserError, match=message):
        dataloader("folder", 8, 0, root, val_size=size)
    assert sorted(dataloader("folder", 8, 0, root, val_size=2)[0].held_out.labels.tolist()) == [0, 1]  # one of each


def test_val_size_needs_two_images_of_each_class(image_folder):
    root = image_folder()
    for file in sorted((root / "train" / "red").iterdir())[1:]:
        file.unlink()
    with pytest.raises(UserError, match="one training image of red: add images.*leave out --val_size") as error:
        dataloader("folder", 8, 0, root, val_size=5)
    assert "blue" not in str(error.value)


def test_a_batch_must_fit_what_is_not_held_out(image_folder):
    with pytest.raises(UserError, match="between 1 and the 30 training images"):
        dataloader("folder", 31, 0, image_folder(), val_size=10)


def test_train_size_is_stratified_and_the_same_for_every_seed():
    whole, _ = dataloader("DIGITS", 64)
    train, test = dataloader("DIGITS", 64, train_size=505, seed=3)
    assert (train.num_images, test.num_images, train.held_out) == (505, 360, None)
    expected = torch.bincount(whole.labels) * 505 / 1437
    assert (torch.bincount(train.labels) - expected).abs().max() <= 1
    other = dataloader("DIGITS", 64, train_size=505, seed=4)[0]
    assert train.images.equal(other.images) and not trained_order(train).equal(trained_order(other))
    assert set(trained_on(train)) <= set(trained_on(dataloader("DIGITS", 64, train_size=700)[0]))


@pytest.mark.parametrize("train_size", [14, 359])
def test_which_images_a_train_size_takes(train_size):
    """The first of each class in the order of seed 0. Then, of all others, those that are earliest in their class."""
    whole, _ = dataloader("DIGITS", 64)
    order, labels, ranked = np.random.RandomState(0).permutation(1437).tolist(), whole.labels.tolist(), []
    for label in range(10):
        members = [i for i in order if labels[i] == label]
        ranked += [((k + 0.5) / len(members) if k else 0, label, i) for k, i in enumerate(members)]
    chosen = sorted(i for *_, i in sorted(ranked)[:train_size])
    train, _ = dataloader("DIGITS", 1, train_size=train_size)
    assert train.images.equal(whole.images[chosen]) and train.labels.equal(whole.labels[chosen])


@pytest.mark.parametrize("val_size", [50, 437])
def test_held_out_images_are_not_among_the_train_size(val_size):
    """They come from the rest, and may be all of it. The seed chooses them, but not the training images."""
    whole, _ = dataloader("DIGITS", 64)
    a, again, b = (dataloader("DIGITS", 64, train_size=1000, val_size=val_size, seed=s)[0] for s in (1, 1, 2))
    assert a.images.equal(b.images) and a.held_out.images.equal(again.held_out.images)
    assert a.held_out.images.equal(b.held_out.images) == (val_size == 437)
    assert a.num_images == 1000 and a.held_out.num_images == val_size
    assert not set(trained_on(a)) & set(rows(a.held_out.images))
    assert set(trained_on(a) + rows(a.held_out.images)) <= set(trained_on(whole))
    expected = torch.bincount(whole.labels) * val_size / 1437
    assert (torch.bincount(a.held_out.labels) - expected).abs().max() <= 1.5


def test_any_size_from_the_classes_to_all_images(image_folder):
    """All of them: the same batches as without the flag, to the bit. Mean and std are always those of all images."""
    root = image_folder()
    whole, _ = dataloader("folder", 2, 0, root)
    for size in (2, 3, 39, 40):
        train, _ = dataloader("folder", 2, 0, root, train_size=size)
        assert train.num_images == size and (train.mean, train.std) == (whole.mean, whole.std)
        assert len(torch.cat([labels for _, labels in train]).unique()) == 2
    assert same_batches(train, whole)


def test_rare_classes_are_trained_on():
    labels = np.array([0] * 500 + [1] * 300 + [2])
    chosen, rest = proportional(Split(np.arange(801), labels), 81)
    assert np.bincount(chosen.labels).tolist() == [50, 30, 1]
    assert sorted([*chosen.images, *rest.images]) == list(range(801))


@pytest.mark.parametrize(("train_size", "val_size", "message"), [
    (1, 0, "--train_size must lie between the 2 classes and the 40 training images, not 1"), (41, 0, "not 41"),
    (-3, 0, "--train_size .*not -3"), (30, 11, "--val_size must .*10 training images that --train_size 30 leaves"),
    (40, 2, "the 0 training images that --train_size 40 leaves, not 2")])
def test_train_size_must_fit(image_folder, train_size, val_size, message):
    with pytest.raises(UserError, match=message) as error:
        dataloader("folder", 1, 0, image_folder(), train_size=train_size, val_size=val_size)
    assert "\n" not in str(error.value)
