"""Data sets, their sizes, and the loaders of ``dataloader``."""

import json
import multiprocessing
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from image_data import IMAGENET_CLASSES, make_imagenet, random_data, same_batches
from PIL import Image
from processes import CONTEXT, group
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision import datasets

import data_loader
import evaluate
import train
from data_loader import CONSTANTS, Cached, Split, dataloader
from runtime.checkpoints import serialise
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
    assert data_loader.normalisation("DIGITS") == (train.mean, train.std)


def test_defaults():
    """Batches of 128, seed 0, one view of each image, all images to train on, kept in memory."""
    train, test = dataloader("DIGITS")
    same, _ = dataloader("DIGITS", 128, seed=0, cache=True, val_size=0, train_size=0, views=1)
    alone = data_loader.test_images("DIGITS", mean=test.mean, std=test.std)
    assert [loader.batch_size for loader in (train, test, alone)] == [128] * 3 and isinstance(train, Cached)
    assert same_batches([next(iter(train))], [next(iter(same))])


def test_folder(image_folder):
    root = image_folder()
    train, test = dataloader("folder", 8, 2, root)
    assert (train.num_images, test.num_images, train.classes) == (40, 14, ["blue", "red"])
    files = [f for name in ("blue", "red") for f in sorted((root / "train" / name).iterdir())]
    pixels = np.stack([np.asarray(Image.open(f).resize((32, 32), Image.Resampling.BILINEAR)) for f in files]) / 255
    assert train.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    assert train.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-4)


def test_files_of_many_formats_are_images(image_folder):
    """Also without an ending. Hidden files are skipped."""
    root = image_folder()
    before = dataloader("folder", 4, 0, root)[0].num_images
    picture = Image.open(root / "train" / "red" / "0.jpg")
    picture.save(root / "train" / "red" / "animated.gif")
    picture.save(root / "train" / "red" / "no ending", format="PNG")
    (root / "train" / "red" / ".DS_Store").write_bytes(b"written by a file manager")
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(deep).save(root / "train" / "red" / "deep.png")
    assert dataloader("folder", 4, 0, root)[0].num_images == before + 3


@pytest.mark.parametrize("name", ["folder", "imagenet"])
@pytest.mark.parametrize("part", ["val", "test"])
def test_val_or_test_alone_tests(image_folder, name, part):
    root = image_folder(train=4, test=3)
    (root / "test").rename(root / part)
    train, test = dataloader(name, 2, 0, root)
    assert (test.num_images, train.held_out) == (6, None)


def with_val(image_folder, train=8, val=3, test=2):
    """-> class folders with train/, val/ and test/."""
    root = image_folder(train=train, test=val)
    (root / "test").rename(root / "val")
    for name in ("blue", "red"):
        (root / "test" / name).mkdir(parents=True)
        for i in range(test):
            Image.effect_noise((36, 40), 50 + i).convert("RGB").save(root / "test" / name / f"{i}.png")
    return root


def pixels_of(folder):
    files = [file for name in ("blue", "red") for file in sorted((folder / name).iterdir())]
    return torch.stack([data_loader.load_image(str(file), False) for file in files])


@pytest.mark.parametrize("train_size", [0, 6])
def test_val_is_held_out_if_there_is_a_test(image_folder, train_size):
    """It is not augmented, and not touched by --train_size. An evaluation alone takes test/."""
    root = with_val(image_folder)
    cached, streamed = (dataloader("folder", 4, 0, root, train_size=train_size, cache=cache) for cache in (True, False))
    train, test = cached
    assert (train.num_images, train.held_out.num_images, test.num_images) == (train_size or 16, 6, 4)
    assert train.held_out.images.equal(pixels_of(root / "val")) and test.images.equal(pixels_of(root / "test"))
    assert train.held_out.labels.tolist() == [0] * 3 + [1] * 3
    assert same_batches(train.held_out, streamed[0].held_out) and same_batches(test, streamed[1])
    assert data_loader.test_images("folder", 4, 0, root, mean=train.mean, std=train.std).images.equal(test.images)
    large, large_test = dataloader("imagenet", 4, 0, root, train_size=train_size)
    assert (large.held_out.num_images, large_test.num_images) == (6, 4)


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_val_and_val_size_exclude_each_other(image_folder, name):
    with pytest.raises(UserError, match="--val_size 4 and .*/val both hold out images .*: leave out --val_size"):
        dataloader(name, 4, 0, with_val(image_folder), val_size=4)


def test_a_training_with_val_is_measured_on_test(image_folder, tmp_path, capsys):
    """The command line: val/ chooses the best epoch, evaluate.py gives the metrics of test/."""
    root = with_val(image_folder)
    train.main(["--model", "resnet8", "--dataset", "folder", "--data_dir", str(root), "--batch_size", "8", "--device",
                "cpu", "--num_epochs", "2", "--save_dir", str(tmp_path), "--num_workers", "0"])
    summary = json.loads((tmp_path / "folder" / "resnet8" / "summary.json").read_text())
    assert summary["chosen_by"] == "val_accTop1" and "val_loss" in summary["best"]
    assert "6 held-out images choose the best epoch" in (tmp_path / "folder" / "resnet8" / "train.log").read_text()
    capsys.readouterr()
    evaluate.main([str(tmp_path / "folder" / "resnet8"), "--json", "--device", "cpu"])
    result = json.loads(capsys.readouterr().out)
    assert result["images"] == 4 and result["figures"]["test_loss"] == summary["best"]["test_loss"]


@pytest.mark.parametrize("first", ["val", "elsewhere"])
def test_a_run_is_not_resumed_if_val_came_or_went(image_folder, tmp_path, first):
    root = with_val(image_folder)
    flags = ["--model", "resnet8", "--dataset", "folder", "--data_dir", str(root), "--batch_size", "8", "--device",
             "cpu", "--save_dir", str(tmp_path), "--num_workers", "0", "--resume", "auto", "--num_epochs"]
    places = [root / "val", root / "elsewhere"]
    if first == "elsewhere":
        places[0].rename(places[1])
        places.reverse()
    train.main([*flags, "1"])
    places[0].rename(places[1])
    numbers = "6 there, 0 here" if first == "val" else "0 there, 6 here"
    with pytest.raises(UserError, match=f"resnet8 was started with other number of held-out images [(]{numbers}[)]"):
        train.main([*flags, "2"])
    path = tmp_path / "folder" / "resnet8" / "last.pth"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["digest"], checkpoint["unchangeable"]["number of held-out images"]  # older code did not use val/
    path.write_bytes(serialise(checkpoint))
    if first == "elsewhere":
        with pytest.raises(UserError, match="resnet8 cannot be resumed with the folder val/ in .*: .* Move val/ away"):
            train.main([*flags, "2"])


@pytest.mark.parametrize(("name", "options"), [("folder", {}), ("folder", {"cache": False}), ("imagenet", {})])
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


def test_a_training_without_cache_ends_in_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for version, cache in (("A", "on"), ("B", "off")):
        train.main(["--model", "resnet8", "--dataset", "DIGITS", "--num_epochs", "1", "--cache", cache,
                    "--num_workers", "1", "--version", version, "--device", "cpu"])
    a, b = (torch.load(f"DIGITS/resnet8_{v}/last.pth", weights_only=True) for v in "AB")
    assert all(a["state_dict"][name].equal(value) for name, value in b["state_dict"].items())
    assert a["random"][0]["torch"].equal(b["random"][0]["torch"])


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


def test_the_seed_chooses_the_held_out_images():
    a, b, other = (dataloader("DIGITS", 64, val_size=50, seed=s)[0].held_out for s in (1, 1, 2))
    assert a.images.equal(b.images) and not a.images.equal(other.images)


@pytest.mark.parametrize("train_size", [0, 1000])
def test_seeds_of_more_than_32_bits_choose_the_held_out_images_too(train_size):
    small, equal, other = (dataloader("DIGITS", 64, val_size=50, train_size=train_size, seed=s)[0].held_out.images
                           for s in (1, 1 + 2**32, 65))
    assert small.equal(equal) and not small.equal(other)


@pytest.mark.parametrize("train_size", [0, 30])
def test_one_held_out_image_of_each_class_is_enough(image_folder, train_size):
    held_out = dataloader("folder", 8, 0, image_folder(), val_size=2, train_size=train_size)[0].held_out
    assert sorted(held_out.labels.tolist()) == [0, 1]


@pytest.mark.parametrize(("size", "message"), [
    (1, "between the 2 classes and the 40 training images, not 1"), (40, "not 40"), (400, "not 400"), (-3, "not -3"),
    (39, "--val_size 39 leaves 1 training images for 2 classes: it must be at most 38")])
@pytest.mark.parametrize("cache", [True, False])
def test_val_size_must_fit(image_folder, size, message, cache):
    with pytest.raises(UserError, match=message):
        dataloader("folder", 8, 0, image_folder(), val_size=size, cache=cache)


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


@pytest.mark.parametrize("train_size", [10, 14, 359, 1437])
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


@pytest.mark.parametrize("cache", [True, False])
def test_any_size_from_the_classes_to_all_images(image_folder, cache):
    """All of them: the same batches as without the flag, to the bit. Mean and std are always those of all images."""
    root = image_folder()
    whole, _ = dataloader("folder", 2, 0, root, cache=cache)
    for size in (2, 3, 39, 40):
        train, _ = dataloader("folder", 2, 0, root, cache=cache, train_size=size)
        assert train.num_images == size and (train.mean, train.std) == (whole.mean, whole.std)
        assert len(torch.cat([labels for _, labels in train]).unique()) == 2
    assert same_batches(train, whole)


def test_rare_classes_are_trained_on():
    labels = np.array([0] * 500 + [1] * 300 + [2])
    chosen, rest = data_loader.proportional(Split(np.arange(801), labels), 81)
    assert np.bincount(chosen.labels).tolist() == [50, 30, 1]
    assert sorted([*chosen.images, *rest.images]) == list(range(801))


@pytest.mark.parametrize("name", ["DIGITS", "folder"])
def test_train_size_without_cache_gives_the_same_batches(image_folder, name):
    root = image_folder(train=30)
    cached, streamed = (dataloader(name, 7, 0, root, seed=1, train_size=31, val_size=12, cache=cache)[0]
                        for cache in (True, False))
    assert same_batches(cached, streamed) and same_batches(cached.held_out, streamed.held_out)


@pytest.mark.parametrize(("train_size", "val_size", "message"), [
    (1, 0, "--train_size must lie between the 2 classes and the 40 training images, not 1"), (41, 0, "not 41"),
    (-3, 0, "--train_size .*not -3"), (30, 11, "--val_size must .*10 training images that --train_size 30 leaves"),
    (40, 2, "the 0 training images that --train_size 40 leaves, not 2")])
def test_train_size_must_fit(image_folder, train_size, val_size, message):
    with pytest.raises(UserError, match=message) as error:
        dataloader("folder", 1, 0, image_folder(), train_size=train_size, val_size=val_size)
    assert "\n" not in str(error.value)


def broken(root, change):
    if change == "no data":
        root = root / "nowhere"
    elif change == "no test":
        (root / "test").rename(root / "other")
    elif change == "empty class":
        (root / "train" / "green").mkdir()
        (root / "test" / "green").mkdir()
    elif change == "one class":
        for split in ("train", "test"):
            (root / split / "blue").rename(root / f"blue of {split}")
    elif change == "other classes":
        (root / "test" / "red").rename(root / "test" / "violet")
    elif change == "truncated":
        file = root / "train" / "red" / "4.jpg"
        file.write_bytes(file.read_bytes()[:200])
    elif change == "text":
        (root / "test" / "blue" / "note.png").write_text("not an image")
    return root


@pytest.mark.parametrize(("change", "named"), [
    ("no data", "nowhere/train does not exist: .* needs .* train/<class>/[*] and test/.*DIGITS"),
    ("no test", "test does not exist"), ("empty class", "green"),
    ("one class", "train holds one class, red: .* at least two"), ("other classes", "one of them has red, violet"),
    ("truncated", "4.jpg does not decode"), ("text", "note.png does not decode")])
def test_bad_folders_are_named(image_folder, change, named):
    with pytest.raises(UserError, match=named) as error:
        dataloader("folder", 8, 2, broken(image_folder(), change))
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
    for file in damaged[1:10]:
        file.unlink()
    (root / "train" / "blue" / "0.jpg").unlink()
    with pytest.raises(UserError) as error:
        dataloader("folder", 8, 2, root)
    message = str(error.value)
    assert message.startswith("3 image") and all(str(damaged[i]) in message for i in (0, 10, 11))


@pytest.mark.parametrize("cache", [True, False])
def test_test_images_need_no_training_images(image_folder, cache):
    root = image_folder()
    _, test = dataloader("folder", 4, 0, root)
    (root / "train").rename(root / "elsewhere")
    options = {"root": root, "mean": test.mean, "std": test.std, "cache": cache}
    alone = data_loader.test_images("folder", 4, 0, **options)
    assert same_batches(alone, test) and isinstance(alone, Cached) == cache
    (root / "test").rename(root / "not here")
    with pytest.raises(UserError, match="needs a --data_dir with test/<class>/[*] or val/<class>/[*] below it"):
        data_loader.test_images("folder", 4, 0, **options)


def test_streamed_images_come_from_worker_processes(image_folder):
    root = image_folder()
    train, _ = dataloader("folder", 4, 1, root, cache=False)
    alone = data_loader.test_images("folder", 4, 1, root, mean=train.mean, std=train.std, cache=False)
    for loader in (train, alone):
        before = set(multiprocessing.active_children())
        next(iter(loader))
        assert len(set(multiprocessing.active_children()) - before) == 1
        loader.close()
        assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("target", ["../..", "..", ".", "../../../elsewhere"])
def test_a_link_to_a_folder_above_itself_is_named(image_folder, target):
    """The last one leads out of the data, and from there back into it."""
    root = image_folder(train=1, test=1)
    (root.parent / "elsewhere").mkdir()
    (root.parent / "elsewhere" / "back").symlink_to(root / "train")
    (root / "train" / "red" / "link").symlink_to(target)
    place = "link/back" if "elsewhere" in target else "link"
    with pytest.raises(UserError, match=f"red/{place} is a link to a folder above itself .*: remove the link") as error:
        dataloader("folder", 2, 0, root)
    assert len(str(error.value)) < 500


def test_links_to_other_folders_are_followed(image_folder):
    root = image_folder(train=2, test=1)
    (root / "train" / "red").rename(root.parent / "red")
    (root / "train" / "red").symlink_to("../../red")
    assert dataloader("folder", 2, 0, root)[0].num_images == 4


@pytest.mark.parametrize(("change", "named"), [
    ("no val", "val does not exist.*--dataset imagenet.*val/<class>.* or test/<class>"), ("classes", "n02")])
def test_bad_imagenet_folders_are_named(tmp_path, change, named):
    root = make_imagenet(tmp_path)
    if change == "classes":
        (root / "val" / IMAGENET_CLASSES[0]).rename(root / "val" / "n02")
    else:
        (root / "val").rename(root / "other")
    with pytest.raises(UserError, match=named):
        dataloader("imagenet", 4, 0, root)


@pytest.mark.parametrize(("device", "large", "batch_size", "evaluated"), [
    ("cpu", False, 128, 128), ("cuda", False, 128, 1024), ("cuda", True, 128, 256), ("cuda", False, 4000, 4000)])
def test_gpus_evaluate_in_larger_batches(device, large, batch_size, evaluated):
    data = random_data(3)._replace(large=large)
    assert data_loader.evaluation_batch(batch_size, data, torch.device(device)) == evaluated


@pytest.mark.parametrize("batch_size", [-1, 0, 41])
def test_batch_size_must_fit(image_folder, batch_size):
    with pytest.raises(UserError, match="--batch_size must lie between 1 and the 40"):
        dataloader("folder", batch_size, 0, image_folder())


def test_unknown_dataset():
    with pytest.raises(UserError, match="SVHN.*CIFAR10"):
        dataloader("SVHN")


def test_cifar_is_downloaded_if_it_is_missing(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: asked.append(self.root))
    with pytest.raises(UserError, match="could not be downloaded"):
        dataloader("CIFAR10", root=tmp_path / "new")
    assert asked == [tmp_path / "new"]


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_without_network(tmp_path, name):
    """A closed port instead of the network: one sentence. It names the file and says what to do."""
    code = f"import data_loader; data_loader.dataloader({name!r}, root={str(tmp_path / 'new')!r})"
    closed = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | closed, capture_output=True,
                          text=True)
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("runtime.errors.UserError") and "python.tar.gz" in message and "DIGITS" in message
    assert list(tmp_path.iterdir()) == []  # the folder of the download is gone, and the one above it is not


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
    assert (train.mean, train.std) == CONSTANTS[kind.__name__] == {
        "CIFAR10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))}[kind.__name__]
    pixels, labels = stored[kind.test_list[0][0]]
    assert test.images.numpy().transpose(0, 3, 1, 2).reshape(20, -1).tolist() == pixels.tolist()
    assert test.labels.tolist() == labels
    streamed, _ = dataloader(kind.__name__, 10, 0, tmp_path, cache=False)
    assert same_batches(train, streamed)

    alone = data_loader.test_images(kind.__name__, 10, 0, tmp_path, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert alone.images.equal(test.images) and alone.classes == classes and alone.mean == (0.1, 0.2, 0.3)
    assert data_loader.sample_images(kind.__name__, tmp_path, 3).equal(test.images[[0, 9, 19]])
    assert data_loader.normalisation(kind.__name__) == (train.mean, train.std)

    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (folder / names[0]).write_bytes(b"changed")
    with pytest.raises(UserError, match="MD5"):
        dataloader(kind.__name__, 10, 0, tmp_path)


# --- several processes


def load_in_order(environment, folder, batch_size, outcomes):
    """One of two processes: it loads a data set that must be downloaded, and puts the result into ``outcomes``."""
    os.environ.update(environment)
    rank = int(environment["RANK"])
    dist.init_process_group("gloo")

    def download(root, test_only=False):
        """Write down which process came, and whether another one had downloaded before."""
        found = os.path.exists(folder)
        with open(folder, "a") as file:
            file.write(f"{rank}{'found' if found else 'downloaded'} ")
        return data_loader.digits(root)

    data_loader.DATASETS["downloaded"] = download
    try:
        train, test = dataloader("downloaded", batch_size)
        outcomes.put((rank, train.num_images, test.num_images, train.parts()[0]))
    except UserError as error:
        outcomes.put((rank, str(error), error.already_reported))
    dist.barrier()


def in_two_processes(function, *arguments):
    """-> what two processes put into the queue of function(environment, *arguments, queue), sorted by rank."""
    outcomes = CONTEXT.Queue()
    started = [CONTEXT.Process(target=function, args=(environment, *arguments, outcomes)) for environment in group(2)]
    for process in started:
        process.start()
    found = sorted(outcomes.get(timeout=120) for _ in started)
    for process in started:
        process.join(120)
    return found


def test_the_first_process_downloads_and_the_others_find_it(tmp_path):
    folder = str(tmp_path / "downloaded")
    assert in_two_processes(load_in_order, folder, 128) == [(0, 1437, 360, (0, 64)), (1, 1437, 360, (64, 128))]
    assert open(folder).read() == "0downloaded 1found "


def test_an_error_of_the_first_process_reaches_all_and_is_reported_once(tmp_path):
    message = "--batch_size 127 cannot be shared out evenly among 2 processes"
    found = in_two_processes(load_in_order, str(tmp_path / "downloaded"), 127)
    assert found == [(0, message, False), (1, message, True)]


def centres(root, seed, cache):
    """The central pixel of each training image of an epoch, batch by batch [(red, green, blue), ...].

    Red is the number of the image; green and blue tell how it was cropped and flipped.
    """
    train, _ = dataloader("folder", 6, 0, root, seed=seed, train_size=24, cache=cache)
    std, mean = (torch.tensor(values).view(3, 1, 1) for values in (train.std, train.mean))
    return [[tuple(pixel) for pixel in ((x * std + mean) * 255)[:, :, 16, 16].round().int().tolist()] for x, _ in train]


def centres_of_a_process(environment, root, cache, outcomes):
    """One of two processes: what it trains on with seeds 0 and 1."""
    os.environ.update(environment)
    dist.init_process_group("gloo")
    outcomes.put((int(environment["RANK"]), [centres(root, seed, cache) for seed in (0, 1)]))
    dist.barrier()


def test_seeds_train_on_the_same_images_in_another_order_with_another_augmentation(tmp_path):
    """The same ones cached and streamed, in one process and in two, which share each batch."""
    for number in range(40):
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[..., 0], pixels[..., 1], pixels[..., 2] = 6 * number, 8 * np.arange(32), 8 * np.arange(32)[:, None]
        for part in ("train", "test"):
            (tmp_path / part / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / part / "ab"[number % 2] / f"{number}.png")
    found = [centres(str(tmp_path), seed, True) for seed in (0, 1)]
    assert found == [centres(str(tmp_path), seed, False) for seed in (0, 1)]
    for cache in (True, False):
        ((_, first), (_, second)) = in_two_processes(centres_of_a_process, str(tmp_path), cache)
        assert all(len(part) == 3 for seed in (*first, *second) for part in seed)
        assert found == [[a + b for a, b in zip(*seeds, strict=True)] for seeds in zip(first, second, strict=True)]
    orders = [[red for batch in batches for red, _, _ in batch] for batches in found]
    augmented = [{red: rest for batch in batches for red, *rest in batch} for batches in found]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) and len(set(orders[0])) == 24
    assert sum(augmented[0][red] != augmented[1][red] for red in orders[0]) > 12
