import sys

import numpy as np
import pytest
import torch
from image_data import IMAGENET_CLASSES, make_imagenet, random_data, same_batches, truncate
from PIL import Image

import data_loader
from data_loader import Cached, Streamed, dataloader
from loading.augmentation import augmentation_parameters
from runtime.errors import UserError


def loader(n=20, seed=0, augment=True):
    data = random_data(n)
    return Cached(data.train, data, 8, torch.device("cpu"), seed, augment)


def epoch(train, number):
    train.set_epoch(number)
    images, labels = zip(*train, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_batches_are_channels_last():
    images, _ = next(iter(loader()))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_shows_every_image_once_in_its_own_order():
    train = loader(n=50)
    orders = [epoch(train, e)[1].tolist() for e in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1]


def test_an_epoch_depends_on_seed_and_number_alone():
    torch.manual_seed(1)
    first = epoch(loader(seed=5), 7)
    torch.manual_seed(2)
    again, other = epoch(loader(seed=5), 7), epoch(loader(seed=6), 7)
    assert again[0].equal(first[0]) and again[1].equal(first[1])
    assert not other[1].equal(first[1])


def test_a_new_loader_is_at_epoch_0():
    assert loader(n=50).augmentation_parameters()[0].equal(augmentation_parameters(50, 0, 0, True, False)[0])


def test_an_epoch_can_start_at_any_step():
    train = loader(n=50)
    for first in (0, 3):
        assert train.parts(first) == train.parts()[first:] and train.shares(first) == train.shares()[first:]
    whole = list(train)
    rest = list(train.batches(first=3))
    assert len(rest) == len(whole) - 3 and same_batches(rest, whole[3:])


@pytest.mark.parametrize(("n", "sizes"), [(16, [8, 8]), (17, [8, 9]), (18, [8, 8, 2]), (8, [8]), (9, [9]), (1, [1])])
def test_a_last_batch_of_one_joins_the_batch_before(n, sizes):
    train = loader(n=n)
    assert [len(labels) for _, labels in train] == sizes and len(train) == len(sizes)
    assert sum(len(labels) for _, labels in loader(n=n, augment=False)) == n


# --- streamed


@pytest.mark.parametrize(("name", "workers", "views"), [
    ("DIGITS", 0, 1), ("DIGITS", 2, 1), ("folder", 0, 1), ("folder", 2, 1), ("DIGITS", 0, 3), ("folder", 2, 4)])
def test_without_cache_the_batches_are_the_same(image_folder, name, workers, views):
    """Bit for bit: two epochs, one of them from a later step on, the held-out images, the test images."""
    root = image_folder(train=30)
    cached = dataloader(name, 17, 2, root, seed=1, val_size=12, views=views)
    streamed = dataloader(name, 17, workers, root, seed=1, val_size=12, cache=False, views=views)
    assert isinstance(cached[0], Cached) and isinstance(streamed[0], Streamed)
    assert (cached[0].mean, cached[0].std) == (streamed[0].mean, streamed[0].std)
    for number, first in ((0, 0), (5, 1)):
        for train in (cached[0], streamed[0]):
            train.set_epoch(number)
        assert same_batches(cached[0].batches(first), streamed[0].batches(first))
    assert same_batches(cached[0].held_out, streamed[0].held_out) and same_batches(cached[1], streamed[1])
    for train in (cached[0], streamed[0]):
        images, _ = next(iter(train))
        for view in images.unbind(1) if views > 1 else [images]:
            assert view.shape == (17, 3, 32, 32) and view.is_contiguous(memory_format=torch.channels_last)
    assert next(iter(cached[1]))[0].shape[1:] == (3, 32, 32)  # evaluation has one view


def test_streamed_files_are_read_when_their_batch_needs_them(image_folder):
    root = image_folder()
    train, _ = dataloader("folder", 8, 0, root, cache=False)
    (root / "train" / "red" / "3.png").write_text("not an image")
    with pytest.raises(UserError, match="3.png does not decode"):
        list(train)


@pytest.fixture
def root(tmp_path):
    return make_imagenet(tmp_path / "images")


def imagenet(root, workers=0, **options):
    return dataloader("imagenet", 4, workers, root, **options)


def test_an_epoch_is_the_same_with_any_number_of_workers(root):
    """Also if an epoch is left early, and if another one starts at a later step in the same worker processes."""
    here, workers = (imagenet(root, n, seed=1)[0] for n in (0, 2))
    epochs = []
    for number in (0, 1, 0):
        here.set_epoch(number)
        workers.set_epoch(number)
        epochs.append(list(here))
        assert same_batches(epochs[-1], workers)
        images, _ = next(iter(workers))
        assert images.shape == (4, 3, 224, 224) and images.is_contiguous(memory_format=torch.channels_last)
        assert same_batches(epochs[-1][2:], workers.batches(2)) and same_batches(epochs[-1][2:], here.batches(2))
    first, second, again = (torch.cat([images for images, _ in epoch]) for epoch in epochs)
    assert first.equal(again)
    assert not any(image.equal(other) for image in first for other in second)
    other = imagenet(root, seed=2)[0]
    assert not same_batches(epochs[0], other)


def test_held_out_images_are_the_same_again(root):
    """Each file is either a training image or held out."""
    train, again = (imagenet(root, seed=1, val_size=4)[0] for _ in range(2))
    assert same_batches(train.held_out, again.held_out)
    paths = [part.loader.dataset.split.images.tolist() for part in (train, train.held_out)]
    assert sorted(sum(paths, [])) == sorted(str(file).encode() for file in (root / "train").rglob("*.JPEG"))


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_own_random_numbers_are_not_changed(root, workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train, test = imagenet(root, workers)
    list(train), list(test)
    assert torch.get_rng_state().equal(before)


def test_a_last_streamed_batch_of_one_joins_the_batch_before(tmp_path):
    make_imagenet(tmp_path, train=5)
    train, test = dataloader("imagenet", 3, 0, tmp_path)
    assert [len(labels) for _, labels in train] == [3, 3, 4] and len(train) == 3
    assert [len(labels) for _, labels in test] == [3, 3]


def error_of(loader):
    """Not pytest.raises: it keeps the traceback, and with it the worker processes, which then end late."""
    try:
        list(loader)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("part", ["train", "val"])
def test_corrupt_files_are_named(root, part, workers):
    file = truncate(root / part / IMAGENET_CLASSES[1] / "0.JPEG")
    message = error_of(imagenet(root, workers)[part == "val"])
    assert message.startswith(f"{file} does not decode as an image: ")
    assert "\n" not in message and "Traceback" not in message


@pytest.mark.parametrize("workers", [0, 2])
def test_all_corrupt_files_of_a_batch_are_named(root, workers):
    first, second = (truncate(root / "val" / IMAGENET_CLASSES[0] / f"{i}.JPEG") for i in (0, 2))
    truncate(root / "val" / IMAGENET_CLASSES[1] / "2.JPEG")  # of the next batch
    message = error_of(imagenet(root, workers)[1])
    assert message.startswith(f"2 image files or folders cannot be used: {first} does not decode as an image: ")
    assert f"; {second} does not decode" in message and message.count("JPEG does not") == 2 and "\n" not in message


def test_a_training_with_a_corrupt_file_ends_with_one_line(root, script):
    file = truncate(root / "train" / IMAGENET_CLASSES[0] / "2.JPEG")
    done = script("train.py", "--model", "resnet18", "--dataset", "imagenet", "--data_dir", root, "--batch_size", "4",
                  "--num_workers", "1", "--num_epochs", "1", "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {file} does not decode as an image: ") and done.stderr.count("\n") == 1


# --- --decoder fast


def test_the_decoder_is_used_in_every_loader(root):
    """For training, held-out and test images, with any number of workers, and in an evaluation alone."""
    rng = np.random.default_rng(0)
    for file in root.rglob("*.JPEG"):  # noise, which the two resize differently
        Image.fromarray(rng.integers(0, 256, (260, 300, 3), dtype=np.uint8)).save(file)
    options = {"seed": 1, "val_size": 4}
    (pil, pil_test), (fast, fast_test), (workers, workers_test) = (
        imagenet(root, **options), imagenet(root, decoder="fast", **options),
        imagenet(root, 1, decoder="fast", **options))
    alone = data_loader.test_images("imagenet", 4, 0, root, mean=fast.mean, std=fast.std, decoder="fast")
    for a, b, c in ((pil, fast, workers), (pil.held_out, fast.held_out, workers.held_out),
                    (pil_test, fast_test, workers_test), (pil_test, fast_test, alone)):
        assert same_batches(b, c) and not same_batches(a, b)
        assert all(images.is_contiguous(memory_format=torch.channels_last) for images, _ in b)


@pytest.mark.parametrize(("name", "decoder", "said"), [
    ("imagenet", "cv2", "unknown decoder 'cv2'; known are pil, fast"), ("DIGITS", "fast", "not for DIGITS")])
def test_a_decoder_that_does_not_fit(root, name, decoder, said):
    with pytest.raises(UserError, match=said):
        dataloader(name, root=root, decoder=decoder)
    with pytest.raises(UserError, match=said):
        data_loader.test_images(name, root=root, mean=(0, 0, 0), std=(1, 1, 1), decoder=decoder)


def test_a_decoder_that_is_not_installed(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with pytest.raises(UserError, match="^--decoder fast needs a package .*: pip install simplejpeg$"):
        imagenet(root, decoder="fast")
    assert imagenet(root)[0].num_images == 12
