"""ImageNet's pipeline, on a small folder of real files."""

import json

import numpy as np
import pytest
import torch
from errors import UserError
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

from data_loader import dataloader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TO_TENSOR = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
EVALUATED = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), TO_TENSOR])
CLASSES = ["n01440764", "n01443537"]
KINDS = [("RGB", (300, 260)), ("L", (190, 400)), ("CMYK", (256, 224)), ("P", (90, 60)), ("RGBA", (640, 33)),
         ("RGB", (225, 225))]


@pytest.fixture
def root(tmp_path):
    return build(tmp_path / "images")


def build(root, train=6, val=3):
    """Photograph-like files of several sizes and modes; a palette makes a PNG, which ImageNet, too, calls .JPEG."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for name in CLASSES:
            directory = root / part / name
            directory.mkdir(parents=True)
            for i in range(count):
                mode, size = KINDS[i % len(KINDS)]
                image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size).convert(mode)
                image.save(directory / f"{i}.JPEG", "PNG" if mode in ("P", "RGBA") else "JPEG")
    return root


def files(root, part):
    return [file for name in CLASSES for file in sorted((root / part / name).iterdir())]


def opened(file):
    return Image.open(file).convert("RGB")


def loaders(root, workers=0, **options):
    return dataloader("imagenet", 4, workers, root, **options)


def same(a, b):
    return all(x.equal(y) and k.equal(n) for (x, k), (y, n) in zip(a, b, strict=True))


@pytest.mark.parametrize("cache", [True, False])
def test_evaluation_images_are_torchvisions(root, cache):
    train, test = loaders(root, cache=cache)
    assert (train.num_images, test.num_images, train.num_classes, test.classes) == (12, 6, 2, CLASSES)
    assert (train.mean, train.std) == (MEAN, STD)
    images, labels = (torch.cat(tensors) for tensors in zip(*test, strict=True))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1] and images.dtype == torch.float32
    for image, file in zip(images, files(root, "val"), strict=True):
        assert image.equal(EVALUATED(opened(file)))


def test_training_images_are_torchvisions(root):
    """Each is what the usual transforms make of it after its own seed."""
    train, _ = loaders(root, seed=2)
    order, seeds = train.draws()
    transform = transforms.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), TO_TENSOR])
    images, labels = (torch.cat(tensors) for tensors in zip(*train, strict=True))
    assert labels.tolist() == [index // 6 for index in order.tolist()]
    for image, index, seed in zip(images, order.tolist(), seeds.tolist(), strict=True):
        torch.manual_seed(seed)
        assert image.equal(transform(opened(files(root, "train")[index])))


def test_an_epoch_is_the_same_with_any_number_of_workers(root):
    """Also where an epoch is left early and another is entered at a step, by the same worker processes."""
    here, workers = (loaders(root, n, seed=1)[0] for n in (0, 2))
    epochs = []
    for number in (0, 1, 0):
        here.set_epoch(number)
        workers.set_epoch(number)
        epochs.append(list(here))
        assert same(epochs[-1], workers)
        images, _ = next(iter(workers))
        assert images.shape == (4, 3, 224, 224) and images.is_contiguous(memory_format=torch.channels_last)
        assert same(epochs[-1][2:], workers.batches(2)) and same(epochs[-1][2:], here.batches(2))
    first, second, again = (torch.cat([images for images, _ in epoch]) for epoch in epochs)
    assert first.equal(again)
    assert not any(image.equal(other) for image in first for other in second)
    other = loaders(root, seed=2)[0]
    assert not same(epochs[0], other)


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_own_random_numbers_are_left_alone(root, workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train, test = loaders(root, workers)
    list(train), list(test)
    assert torch.get_rng_state().equal(before)


def test_a_last_batch_of_one_joins_the_one_before(tmp_path):
    build(tmp_path, train=5)
    train, test = dataloader("imagenet", 3, 0, tmp_path)
    assert [len(labels) for _, labels in train] == [3, 3, 4] and len(train) == 3
    assert [len(labels) for _, labels in test] == [3, 3]


def test_held_out_images(root):
    train, test = loaders(root, seed=1, val_size=4)
    assert (train.num_images, train.held_out.num_images, test.num_images) == (8, 4, 6)
    (images, labels), = train.held_out
    assert labels.tolist() == [0, 0, 1, 1]
    candidates = [EVALUATED(opened(file)) for file in files(root, "train")]
    assert all(any(image.equal(c) for c in candidates) for image in images)
    assert same(train.held_out, loaders(root, seed=1, val_size=4)[0].held_out)
    paths = [loader.loader.dataset.split.images.tolist() for loader in (train, train.held_out)]
    assert sorted(sum(paths, [])) == [str(file).encode() for file in files(root, "train")]


@pytest.mark.parametrize(("change", "named"), [
    ("no val", "val does not exist.*--dataset imagenet.*val/<class>"), ("test", "val does not exist"),
    ("classes", "n02")])
def test_bad_folders_are_named(root, change, named):
    if change == "classes":
        (root / "val" / CLASSES[0]).rename(root / "val" / "n02")
    else:
        (root / "val").rename(root / ("test" if change == "test" else "other"))
    with pytest.raises(UserError, match=named):
        loaders(root)


def truncate(file):
    file.write_bytes(file.read_bytes()[:300])
    return file


def complaint(loader):
    """Not pytest.raises: it keeps the traceback, and with it the worker processes, which then end late."""
    try:
        list(loader)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("part", ["train", "val"])
def test_corrupt_files_are_named(root, part, workers):
    file = truncate(root / part / CLASSES[1] / "0.JPEG")
    message = complaint(loaders(root, workers)[part == "val"])
    assert message.startswith(f"{file} does not decode as an image: ")
    assert "\n" not in message and "Traceback" not in message


def test_a_training_on_a_corrupt_file_ends_in_one_line(root, script):
    file = truncate(root / "train" / CLASSES[0] / "2.JPEG")
    done = script("train.py", "--model", "resnet18", "--dataset", "imagenet", "--data_dir", root, "--batch_size", "4",
                  "--num_workers", "1", "--num_epochs", "1", "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {file} does not decode as an image: ") and done.stderr.count("\n") == 1


def test_okddip_on_imagenet(root, script, tmp_path):
    done = script("train_GL.py", "--model", "resnet18", "--dataset", "imagenet", "--data_dir", root,
                  "--num_branches", "3", "--batch_size", "4", "--num_workers", "2", "--num_epochs", "1",
                  "--val_size", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "imagenet" / "OKDDip" / "resnet18"
    parameters = json.loads((folder / "parameters.json").read_text())
    assert parameters["classes"] == CLASSES and parameters["mean"] == list(MEAN)
    (record,) = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert 0 <= record["stu_test_accTop1"] <= 100 and np.isfinite(record["train_loss"])
