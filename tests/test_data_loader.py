import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from errors import UserError
from PIL import Image
from torchvision import datasets
from torchvision.transforms import functional as TF

import data_loader
import train
from data_loader import Cached, Data, Split, Streamed, dataloader

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def made_up(n, flip=True):
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    split = Split(images, np.arange(n))
    return Data(split, split, [str(i) for i in range(n)], MEAN, STD, flip)


def loader(n=20, batch_size=8, seed=0, augment=True, flip=True):
    data = made_up(n, flip)
    return data, Cached(data.train, data, batch_size, torch.device("cpu"), seed, augment)


def epoch(train, number):
    train.set_epoch(number)
    images, labels = zip(*train, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_augmentation_is_torchvisions():
    """For the same draws, bit for bit: pad, crop, flip, to_tensor, normalize on PIL images, one at a time."""
    data, train = loader(n=200, batch_size=64)
    images, labels = epoch(train, 3)
    order, top, left, flips = train.draws()
    assert labels.equal(order)
    assert flips.any() and not flips.all() and set(top.tolist()) == set(left.tolist()) == set(range(9))
    for i, index in enumerate(order.tolist()):
        image = TF.pad(Image.fromarray(data.train.images[index]), 4)
        image = TF.crop(image, int(top[i]), int(left[i]), 32, 32)
        image = TF.hflip(image) if flips[i] else image
        expected = TF.normalize(TF.to_tensor(image), MEAN, STD)
        assert images[i].equal(expected)


def test_crops_and_flips_are_uniform():
    """9 rows and 9 columns alike, half of the images mirrored; none where mirroring changes the class."""
    draws = loader(n=9000, flip=True)[1].draws()
    for corner in draws[1:3]:
        assert np.bincount(corner.numpy(), minlength=9) == pytest.approx([1000] * 9, abs=150)
    assert draws[3].float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not loader(n=100, flip=False)[1].draws()[3].any()


def test_evaluation_images_are_torchvisions():
    data, test = loader(n=20, augment=False)
    images, labels = epoch(test, 0)
    assert labels.tolist() == list(range(20))
    for pixels, image in zip(data.train.images, images, strict=True):
        assert image.equal(TF.normalize(TF.to_tensor(Image.fromarray(pixels)), MEAN, STD))


def test_batches_are_channels_last():
    _, train = loader()
    images, _ = next(iter(train))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    _, train = loader(n=50)
    orders = [epoch(train, e)[1].tolist() for e in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1]


def test_an_epoch_follows_from_seed_and_number_alone():
    torch.manual_seed(1)
    first = epoch(loader(seed=5)[1], 7)
    torch.manual_seed(2)
    again, other = epoch(loader(seed=5)[1], 7), epoch(loader(seed=6)[1], 7)
    assert again[0].equal(first[0]) and again[1].equal(first[1])
    assert not other[1].equal(first[1])


def test_an_epoch_can_be_entered_at_any_step():
    _, train = loader(n=50)
    whole = list(train)
    rest = list(train.batches(first=3))
    assert len(rest) == len(whole) - 3
    assert all(a.equal(b) and c.equal(d) for (a, c), (b, d) in zip(rest, whole[3:], strict=True))


@pytest.mark.parametrize(("n", "sizes"), [(16, [8, 8]), (17, [8, 9]), (18, [8, 8, 2]), (8, [8]), (9, [9])])
def test_a_last_batch_of_one_joins_the_one_before(n, sizes):
    _, train = loader(n=n)
    assert [len(labels) for _, labels in train] == sizes and len(train) == len(sizes)
    _, test = loader(n=n, augment=False)
    assert sum(len(labels) for _, labels in test) == n


def test_digits():
    train, test = dataloader("DIGITS", 64)
    assert (train.num_images, test.num_images, train.num_classes) == (1437, 360, 10)
    assert torch.bincount(test.labels).min() >= 35  # stratified
    assert not any(train.draws()[3])  # a mirrored digit is another sign
    images, _ = next(iter(test))
    assert images.shape == (64, 3, 32, 32) and images.dtype == torch.float32
    seen = torch.cat([images for images, _ in test])
    assert seen.mean().abs() < 0.05 and (seen.std() - 1).abs() < 0.05


def test_folder(image_folder):
    root = image_folder()
    train, test = dataloader("folder", 8, 2, root)
    assert (train.num_images, test.num_images, train.classes) == (40, 14, ["blue", "red"])
    files = [f for name in ("blue", "red") for f in sorted((root / "train" / name).iterdir())]
    pixels = np.stack([np.asarray(Image.open(f).resize((32, 32), Image.Resampling.BILINEAR)) for f in files]) / 255
    assert train.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-4)
    assert train.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-4)


def test_files_of_any_ending_are_images(image_folder):
    """train/<class>/*: by what is in them; hidden files are nobody's image. 16 bits of grey are scaled, not clipped."""
    root = image_folder()
    before = dataloader("folder", 4, 0, root)[0].num_images
    picture = Image.open(root / "train" / "red" / "0.jpg")
    picture.save(root / "train" / "red" / "animated.gif")
    picture.save(root / "train" / "red" / "no ending", format="PNG")
    (root / "train" / "red" / ".DS_Store").write_bytes(b"a file manager's")
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(deep).save(root / "train" / "red" / "deep.png")
    train = dataloader("folder", 4, 0, root)[0]
    assert train.num_images == before + 3
    grey = data_loader.decode(os.fsencode(root / "train" / "red" / "deep.png"))
    assert grey[..., 0] == pytest.approx(deep / 257, abs=1.01) and (grey[..., 0] == grey[..., 2]).all()


def test_folder_takes_val_where_there_is_no_test(image_folder):
    root = image_folder()
    (root / "test").rename(root / "val")
    assert dataloader("folder", 8, 0, root)[1].num_images == 14


def test_any_number_of_workers_gives_the_same_images(image_folder):
    root = image_folder()
    a, b = (dataloader("folder", 8, workers, root)[0] for workers in (0, 4))
    assert a.images.equal(b.images) and a.labels.equal(b.labels)


def same(a, b):
    return all(x.equal(y) and k.equal(n) for (x, k), (y, n) in zip(a, b, strict=True))


@pytest.mark.parametrize(("name", "workers"), [("DIGITS", 0), ("DIGITS", 2), ("folder", 0), ("folder", 2)])
def test_without_cache_the_batches_are_the_same(image_folder, name, workers):
    """Bit for bit: two epochs, one of them entered at a step, the held-out images, the test images."""
    root = image_folder(train=30)
    cached = dataloader(name, 17, 2, root, seed=1, val_size=12)
    streamed = dataloader(name, 17, workers, root, seed=1, val_size=12, cache=False)
    assert isinstance(cached[0], Cached) and isinstance(streamed[0], Streamed)
    assert (cached[0].mean, cached[0].std) == (streamed[0].mean, streamed[0].std)
    for number, first in ((0, 0), (5, 1)):
        for loader in (cached[0], streamed[0]):
            loader.set_epoch(number)
        assert same(cached[0].batches(first), streamed[0].batches(first))
    assert same(cached[0].held_out, streamed[0].held_out) and same(cached[1], streamed[1])
    assert next(iter(streamed[0]))[0].is_contiguous(memory_format=torch.channels_last)


def test_streamed_files_are_read_when_their_turn_comes(image_folder):
    root = image_folder()
    loader, _ = dataloader("folder", 8, 0, root, cache=False)
    (root / "train" / "red" / "3.png").write_text("not an image")
    with pytest.raises(UserError, match="3.png does not decode"):
        list(loader)


def test_a_training_without_cache_ends_in_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for version, cache in (("A", "on"), ("B", "off")):
        train.main(["--model", "resnet8", "--dataset", "DIGITS", "--num_epochs", "1", "--cache", cache,
                    "--num_workers", "1", "--version", version, "--device", "cpu"])
    a, b = (torch.load(f"DIGITS/resnet8_{v}/last.pth", weights_only=True) for v in "AB")
    assert all(a["state_dict"][name].equal(value) for name, value in b["state_dict"].items())
    assert a["random"][0]["torch"].equal(b["random"][0]["torch"])


def test_held_out_images_are_stratified_and_as_they_are():
    """The training and the held-out images together are those of a run without --val_size, each once."""
    whole, _ = dataloader("DIGITS", 64)
    train, test = dataloader("DIGITS", 64, val_size=200, seed=3)
    held_out = train.held_out
    assert (train.num_images, held_out.num_images, test.num_images) == (1237, 200, 360)
    assert whole.held_out is None and held_out.held_out is None and test.held_out is None
    expected = torch.bincount(whole.labels) * 200 / 1437
    assert (torch.bincount(held_out.labels) - expected).abs().max() <= 1

    def rows(images):
        return sorted(bytes(image) for image in images.reshape(len(images), -1).numpy())

    middle = slice(4, -4)
    assert rows(torch.cat([train.images[:, middle, middle], held_out.images])) == rows(whole.images[:, middle, middle])
    first, again = torch.cat([x for x, _ in held_out]), torch.cat([x for x, _ in held_out])
    assert first.equal(again) and first.equal(held_out.normalise(held_out.images))


def test_the_seed_chooses_the_held_out_images():
    a, b, other = (dataloader("DIGITS", 64, val_size=50, seed=s)[0].held_out for s in (1, 1, 2))
    assert a.images.equal(b.images) and not a.images.equal(other.images)


@pytest.mark.parametrize(("size", "message"), [
    (1, "between the 2 classes and the 40 training images, not 1"), (40, "not 40"), (400, "not 400"), (-3, "not -3"),
    (39, "--val_size 39 cannot be held out.*1.*2")])
@pytest.mark.parametrize("cache", [True, False])
def test_val_size_must_fit(image_folder, size, message, cache):
    with pytest.raises(UserError, match=message):
        dataloader("folder", 8, 0, image_folder(), val_size=size, cache=cache)


def test_a_batch_must_fit_what_is_not_held_out(image_folder):
    with pytest.raises(UserError, match="between 1 and the 30 training images"):
        dataloader("folder", 31, 0, image_folder(), val_size=10)


def rows(images):
    return [bytes(image) for image in images.reshape(len(images), -1).numpy()]


def trained_on(loader):
    return rows(loader.images[:, 4:-4, 4:-4])


def test_train_size_is_stratified_and_the_same_for_every_seed():
    whole, _ = dataloader("DIGITS", 64)
    train, test = dataloader("DIGITS", 64, train_size=505, seed=3)
    assert (train.num_images, test.num_images, train.held_out) == (505, 360, None)
    expected = torch.bincount(whole.labels) * 505 / 1437
    assert (torch.bincount(train.labels) - expected).abs().max() <= 1
    other = dataloader("DIGITS", 64, train_size=505, seed=4)[0]
    assert train.images.equal(other.images) and not train.draws()[0].equal(other.draws()[0])
    assert set(trained_on(train)) <= set(trained_on(dataloader("DIGITS", 64, train_size=700)[0]))


@pytest.mark.parametrize("val_size", [50, 437])
def test_held_out_images_are_none_of_the_train_size(val_size):
    """They come from the rest, all of which may be held out; the seed draws them alone."""
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
    """All of them is what there is without the flag, to the last bit; the statistics are always those of all."""
    root = image_folder()
    whole, _ = dataloader("folder", 2, 0, root, cache=cache)
    for size in (2, 3, 39, 40):
        train, _ = dataloader("folder", 2, 0, root, cache=cache, train_size=size)
        assert train.num_images == size and (train.mean, train.std) == (whole.mean, whole.std)
        assert len(torch.cat([labels for _, labels in train]).unique()) == 2
    assert same(train, whole)


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
    assert same(cached, streamed) and same(cached.held_out, streamed.held_out)


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
    elif change == "other classes":
        (root / "test" / "red").rename(root / "test" / "violet")
    elif change == "truncated":
        file = root / "train" / "red" / "4.jpg"
        file.write_bytes(file.read_bytes()[:200])
    elif change == "text":
        (root / "test" / "blue" / "note.png").write_text("not an image")
    return root


@pytest.mark.parametrize(("change", "named"), [
    ("no data", "nowhere/train does not exist.*DIGITS"), ("no test", "test does not exist"), ("empty class", "green"),
    ("other classes", "red, violet"), ("truncated", "4.jpg does not decode"), ("text", "note.png does not decode")])
def test_bad_folders_are_named(image_folder, change, named):
    with pytest.raises(UserError, match=named) as error:
        dataloader("folder", 8, 2, broken(image_folder(), change))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batch_size", [-1, 0, 41])
def test_batch_size_must_fit(image_folder, batch_size):
    with pytest.raises(UserError, match="--batch_size must lie between 1 and the 40"):
        dataloader("folder", batch_size, 0, image_folder())


def test_unknown_dataset():
    with pytest.raises(UserError, match="SVHN.*CIFAR10"):
        dataloader("SVHN")


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_without_network(tmp_path, name):
    """A closed port in place of the network: one sentence, which names the file and the way out."""
    code = f"import data_loader; data_loader.dataloader({name!r}, root={str(tmp_path)!r})"
    closed = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | closed, capture_output=True,
                          text=True)
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("errors.UserError") and "python.tar.gz" in message and "DIGITS" in message


@pytest.mark.parametrize(("kind", "key"), [(datasets.CIFAR10, b"labels"), (datasets.CIFAR100, b"fine_labels")])
def test_cifar_files(tmp_path, monkeypatch, kind, key):
    """Files in CIFAR's format, 20 images each: what is in them arrives, and the MD5 sums are checked."""
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
        "CIFAR10": (MEAN, STD),
        "CIFAR100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))}[kind.__name__]
    pixels, labels = stored[kind.test_list[0][0]]
    assert test.images.numpy().transpose(0, 3, 1, 2).reshape(20, -1).tolist() == pixels.tolist()
    assert test.labels.tolist() == labels
    streamed, _ = dataloader(kind.__name__, 10, 0, tmp_path, cache=False)
    assert same(train, streamed)

    alone = data_loader.test_images(kind.__name__, 10, 0, tmp_path, mean=MEAN, std=STD)
    assert alone.images.equal(test.images) and alone.classes == classes and alone.mean == MEAN
    assert data_loader.glimpse(kind.__name__, tmp_path, 3).equal(test.images[[0, 9, 19]])
    assert data_loader.normalisation(kind.__name__) == (train.mean, train.std)

    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    (folder / names[0]).write_bytes(b"changed")
    with pytest.raises(UserError, match="MD5"):
        dataloader(kind.__name__, 10, 0, tmp_path)


def test_channel_statistics():
    split = made_up(7).train
    mean, std = data_loader.channel_statistics(split)
    assert mean == pytest.approx((split.images / 255).mean((0, 1, 2)), abs=1e-4)
    assert std == pytest.approx((split.images / 255).std((0, 1, 2)), abs=1e-4)
