"""Data sets, and the loaders of ``dataloader``."""

import os
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from image_data import random_data, same_batches
from PIL import Image
from processes import CONTEXT, group, in_processes
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision import datasets

import data_loader
from data_loader import Data, dataloader
from loading.augmentation import augmentation_parameters
from runtime.errors import UserError


def test_digits():
    train, test = dataloader("DIGITS", 64)
    assert (train.num_images, test.num_images, train.num_classes) == (1437, 360, 10)
    everything = load_digits()
    _, expected = train_test_split(everything.target, test_size=360, random_state=0, stratify=everything.target)
    assert test.labels.tolist() == expected.tolist()  # the same for everyone
    assert (int(test.images.min()), int(test.images.max())) == (0, 255)  # grey levels 0 to 16
    assert not any(train.augmentation_parameters()[3])  # a mirrored digit is not a digit
    images, _ = next(iter(test))
    assert images.shape == (64, 3, 32, 32) and images.dtype == torch.float32
    seen = torch.cat([images for images, _ in test])
    assert seen.mean().abs() < 0.05 and (seen.std() - 1).abs() < 0.05


def pixels_of(folder):
    """uint8 [N, 32, 32, 3], without the code that is tested."""
    files = [file for name in ("blue", "red") for file in sorted((folder / name).iterdir())]
    pixels = [np.asarray(Image.open(file).resize((32, 32), Image.Resampling.BILINEAR)) for file in files]
    return torch.from_numpy(np.stack(pixels))


@pytest.mark.parametrize("train_size", [0, 6])
def test_val_is_held_out_if_there_is_a_test(image_folder, train_size):
    """It is not augmented, and not touched by --train_size. Mean and std are those of all training images.

    An evaluation alone takes test/.
    """
    root = image_folder(train=8, test=3)
    (root / "test").rename(root / "val")
    (image_folder(root.parent / "other", train=1, test=2) / "test").rename(root / "test")
    cached, streamed = (dataloader("folder", 4, 0, root, train_size=train_size, cache=cache) for cache in (True, False))
    train, test = cached
    assert (train.num_images, train.held_out.num_images, test.num_images) == (train_size or 16, 6, 4)
    assert train.held_out.images.equal(pixels_of(root / "val")) and test.images.equal(pixels_of(root / "test"))
    assert train.held_out.labels.tolist() == [0] * 3 + [1] * 3 and train.classes == ["blue", "red"]
    levels = pixels_of(root / "train").double() / 255
    assert train.mean == pytest.approx(levels.mean((0, 1, 2)).tolist(), abs=1e-4)
    assert train.std == pytest.approx(levels.std((0, 1, 2), correction=0).tolist(), abs=1e-4)
    assert same_batches(train.held_out, streamed[0].held_out) and same_batches(test, streamed[1])
    assert data_loader.test_images("folder", 4, 0, root, mean=train.mean, std=train.std).images.equal(test.images)
    large, large_test = dataloader("imagenet", 4, 0, root, train_size=train_size)
    assert (large.held_out.num_images, large_test.num_images) == (6, 4)


@pytest.mark.parametrize(("name", "old", "new", "named"), [
    ("folder", "", "away", "train does not exist: .* needs .* train/<class>/[*] and test/.* or val/.*DIGITS"),
    ("folder", "test", "other", "test does not exist"), ("imagenet", "test", "other", "val does not exist.*imagenet"),
    ("folder", "test/red", "test/violet", "one of them has red, violet")])
def test_bad_folders_are_named(image_folder, name, old, new, named):
    root = image_folder()
    (root / old).rename(root.parent / new if not old else root / new)
    with pytest.raises(UserError, match=named) as error:
        dataloader(name, 8, 2, root)
    assert "\n" not in str(error.value)


def test_damaged_files_of_all_splits_are_named_in_one_error(image_folder, monkeypatch):
    """Up to ten, and their number. Each file is read once."""
    root, read = image_folder(train=300, test=4, size=(4, 4)), []
    damaged = [root / part / "red" / f"{i}.png" for part, numbers in (("train", range(1, 20, 2)), ("test", (1, 3)))
               for i in numbers]
    (root / "train" / "blue" / "0.jpg").unlink()
    (root / "train" / "blue" / "0.jpg").symlink_to(root / "lost" / "0.jpg")
    for file in damaged:
        file.write_bytes(b"nothing")
    opened = Image.open
    monkeypatch.setattr(Image, "open", lambda path: (read.append(path), opened(path))[1])
    with pytest.raises(UserError) as error:
        dataloader("folder", 8, 2, root)
    message = str(error.value)
    link = f"{root}/train/blue/0.jpg is a link to {root}/lost/0.jpg, which does not exist; "
    assert message.startswith("13 image files or folders cannot be used: " + link) and message.endswith("; 3 more")
    assert message.count("does not decode as an image") == 9 and "\n" not in message
    assert len(read) == len(set(read)) == 607


@pytest.mark.parametrize("cache", [True, False])
def test_the_seed_reaches_the_training_loader(image_folder, cache):
    train, _ = dataloader("folder", 8, 0, image_folder(), seed=5, cache=cache)
    for ours, own in zip(train.augmentation_parameters(), augmentation_parameters(40, 5, 0, True), strict=True):
        assert ours.equal(own)


@pytest.mark.parametrize(("device", "size", "batch_size", "evaluated"), [
    ("cpu", 32, 128, 128), ("cuda", 32, 128, 1024), ("cuda", 224, 128, 256), ("cuda", 32, 4000, 4000),
    ("cuda", 448, 4, 64), ("cuda", 2048, 4, 4)])  # as much memory as with 224
def test_gpus_evaluate_in_larger_batches(device, size, batch_size, evaluated):
    data = random_data(3)._replace(size=size)
    assert data_loader.evaluation_batch(batch_size, data, torch.device(device)) == evaluated


def test_wrong_arguments(image_folder):
    root = image_folder()
    with pytest.raises(UserError, match="--batch_size must lie between 1 and the 40"):
        dataloader("folder", 0, 0, root)
    (root / "val").symlink_to("test")
    with pytest.raises(UserError, match="--val_size 4 and .*/val both hold out images .*: leave out --val_size"):
        dataloader("folder", 4, 0, root, val_size=4)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_without_network(tmp_path, name, monkeypatch):
    """A closed port instead of the network: one sentence. It names the file and says what to do."""
    for variable in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UserError, match="could not be downloaded.*python.tar.gz.*DIGITS"):
        dataloader(name, root=tmp_path)


@pytest.mark.parametrize(("kind", "key"), [(datasets.CIFAR10, b"labels"), (datasets.CIFAR100, b"fine_labels")])
def test_cifar_files(tmp_path, monkeypatch, kind, key):
    """Files in CIFAR's format with 20 images each: their images and labels are read, and their MD5 sums checked."""
    rng = np.random.default_rng(0)
    folder = tmp_path / kind.base_folder
    folder.mkdir()
    sums, stored = {}, {}
    names = [name for name, _ in kind.train_list + kind.test_list]
    for name in names:
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        stored[name] = pixels, rng.integers(0, 10, 20).tolist()
        (folder / name).write_bytes(pickle.dumps({key.decode(): stored[name][1], "data": pixels}))
    classes = [f"class {i}" for i in range(10)]
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: classes}))
    for file in folder.iterdir():
        sums[file.name] = datasets.utils.calculate_md5(file)
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(kind, part, [[name, sums[name]] for name, _ in getattr(kind, part)])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums[kind.meta["filename"]]})

    train, test = dataloader(kind.__name__, 10, 0, tmp_path)
    assert train.num_images == 20 * len(kind.train_list) and train.classes == classes and train.flip
    assert (train.mean, train.std) == {
        "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))}[kind.__name__]
    pixels, labels = stored[kind.test_list[0][0]]
    assert test.images.numpy().transpose(0, 3, 1, 2).reshape(20, -1).tolist() == pixels.tolist()
    assert test.labels.tolist() == labels

    alone = data_loader.test_images(kind.__name__, 10, 0, tmp_path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert alone.images.equal(test.images) and alone.classes == classes and alone.mean == (0.1, 0.2, 0.3)

    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (folder / names[0]).write_bytes(b"changed")
    with pytest.raises(UserError, match="MD5"):
        dataloader(kind.__name__, 10, 0, tmp_path)


# --- several processes


def load_in_order(environment, folder, outcomes):
    """One of two processes: it loads a data set that must be downloaded, and puts the results into ``outcomes``."""
    os.environ.update(environment)
    rank = int(environment["RANK"])
    dist.init_process_group("gloo")

    def download(root, test_only):
        """Write down which process came, and whether another one had downloaded before."""
        found = os.path.exists(folder)
        with open(folder, "a") as file:
            file.write(f"{rank}{'found' if found else 'downloaded'} ")
        return data_loader.digits(root)

    data_loader.DATASETS["downloaded"] = Data(read=download)
    train, test = dataloader("downloaded", 128)
    try:
        dataloader("DIGITS", 127)
    except UserError as error:
        outcomes.put((rank, train.num_images, test.num_images, train.parts()[0], str(error), error.already_reported))
    dist.barrier()


def test_the_first_process_downloads_and_the_others_find_it(tmp_path):
    """An error of the first process reaches all, and is reported once."""
    outcomes, folder = CONTEXT.Queue(), str(tmp_path / "downloaded")
    in_processes(load_in_order, [(environment, folder, outcomes) for environment in group(2)])
    found = sorted(outcomes.get(timeout=10) for _ in range(2))
    message = "--batch_size 127 cannot be shared out evenly among 2 processes"
    assert found == [(0, 1437, 360, (0, 64), message, False), (1, 1437, 360, (64, 128), message, True)]
    assert open(folder).read() == "0downloaded 1found "
