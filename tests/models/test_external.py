"""Networks from elsewhere: the network that its own library makes is the oracle, with a hook for its features."""

import copy
import pickle
import random
import sys
from functools import partial
from unittest.mock import Mock

import pytest
import torch
import torchvision
from torch import nn

import models
from models.cut import tried
from models.external import Source

CNN = """
import torch
from torch import nn
from torch.nn import functional as F


class CNN(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Conv2d(8, 16, 3, 2, 1)
        self.scale = nn.Parameter(torch.ones(16, 1, 1))
        self.last = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.act = nn.Sigmoid()
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x, more=None):
        batch = x.shape[0]
        x = self.act(self.middle(self.stem(x))) * self.scale
        x = self.act(self.last(x)).mean((2, 3)).view(batch, -1)
        return self.fc(input=F.dropout(x, 0.3, self.training)) / 2
"""

MORE = [("torchvision:shufflenet_v2_x0_5", 32, "stage4"), ("torchvision:efficientnet_b0", 32, "features.7"),
        ("torchvision:regnet_y_400mf", 32, "trunk_output.block4"), ("timm:mobilenetv3_small_050", 32, "blocks.5"),
        ("timm:efficientnet_lite0", 32, "blocks.6"), ("timm:convnext_atto", 32, "stages.3"),
        ("timm:vit_tiny_patch16_224", 224, "blocks.11"), ("torchvision:convnext_tiny", 32, "features.7"),
        ("torchvision:vit_b_16", 224, "encoder.layers.encoder_layer_11")]
CUTS = [("own:CNN", 32, "last"), ("own:CNN", 32, "middle"), ("torchvision:mobilenet_v3_small", 64, "features.9"),
        ("timm:resnet10t", 32, "layer4"), *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the text to a file; -> the function that completes a name: own:CNN -> <path>/own.py:CNN."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def name(text, source=CNN):
        (tmp_path / "own.py").write_text(source)
        return text.replace("own:", f"{tmp_path}/own.py:")

    return name


def with_hook(network, classifier, images):
    """What the library's own network computes: its logits, and the input of its classifier."""
    seen = []
    handle = network.get_submodule(classifier).register_forward_hook(
        lambda module, x, named, z: seen.append((*x, *named.values())[0]), with_kwargs=True)
    z = network(images)
    handle.remove()
    return seen[0], z


@pytest.mark.parametrize("place", [True, False], ids=["cut", "whole"])
@pytest.mark.parametrize(("name", "size", "at"), CUTS)
def test_features_logits_and_gradients_are_those_of_the_original_network(own, name, size, at, place):
    name = own(name)
    source = Source(name, image_size=size)
    original, _ = source.build(7)
    original.double()
    network = models.create_model(name, 7, image_size=size, branch_at=at if place else None).double()
    own_names = network.own_state_dict()
    assert own_names.keys() == original.state_dict().keys()
    network.load_state_dict(dict(zip(network.state_dict(), map(original.state_dict().get, own_names), strict=True)))
    images = torch.randn(3, 3, size, size, dtype=torch.float64)

    gradients = []
    for compute in (lambda: with_hook(original, source.find_classifier(original), images),
                    lambda: network.head(network.trunk(images))):
        torch.manual_seed(1)  # of dropout
        h, z = compute()
        (h.square().sum() + z.square().sum()).backward()
        gradients.append((h, z))
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    theirs = {key: p.grad for key, p in original.named_parameters()}
    ours = dict(zip(own_names, [p.grad for p in network.state_dict(keep_vars=True).values()], strict=True))
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in theirs.values())
    for key, gradient in theirs.items():
        assert (gradient is None) == (ours[key] is None), key
        if gradient is not None:
            torch.testing.assert_close(ours[key], gradient, rtol=1e-12, atol=1e-12)
    for key, value in original.state_dict().items():  # BatchNorm's statistics, too
        torch.testing.assert_close(network.own_state_dict()[key], value, rtol=0, atol=0)
    network.eval(), original.eval()
    torch.testing.assert_close(network(images), original(images), rtol=0, atol=0)


class Net(nn.Module):
    """A network whose forward is ``code(network, a)``, with a the output of its first layer."""

    def __init__(self, code, num_classes):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, num_classes)
        self.code, self.pick, self.pair = code, Pick(), Pair()
        self.register_buffer("count", torch.ones(()))

    def forward(self, x):
        return self.code(self, self.a(x))


class Pick(nn.Module):
    def forward(self, pair):
        return pair[0]


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def h(x):
    return x.mean((2, 3))


def z(n, a):
    return n.fc(h(n.b(a)))


def tied(num_classes):
    network = Net(z, num_classes)
    network.b.weight = network.a.weight
    return network


def no_linear(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


BAD = {  # a network, its options, the error
    "no_name": ("own:Net", {}, "has no 'Net'"),
    "no_num_classes": (lambda: None, {}, "<lambda> cannot be called with num_classes=C"),
    "pretrained": (lambda num_classes: None, {"pretrained": True}, "start <lambda> from a file with --init"),
    "raises": (lambda num_classes: {}["depth"], {},
               r"cannot be built with num_classes=10 \(KeyError: 'depth', test_external.py line \d+\)"),
    "no_module": (lambda num_classes: num_classes, {}, "returns int, not an nn.Module"),
    "no_linear": (no_linear, {}, "has no nn.Linear: name .* with --classifier"),
    "map": (no_linear, {"classifier": "0"}, r"takes 4-dimensional features \[2, 3, 32, 32\], not \[B, D\]"),
    "no_tensor": (partial(Net, lambda n, a: n.fc(n.pick((h(n.b(a)), a)))), {"classifier": "pick"},
                  r"takes tuple, not \[B, D\]: name another .*--classifier"),
    "no_such_classifier": ("own:CNN", {"classifier": "head"}, "no submodule 'head'; .* are unused, fc"),
    "twice": (partial(Net, lambda n, a: z(n, a) + z(n, -a)), {}, "calls its classifier fc 2 times, not once"),
    "nan": (partial(Net, lambda n, a: z(n, a) * torch.nan), {}, "logits that are not finite"),
    "classes": (lambda num_classes: Net(z, 7), {}, r"returns \[7\] logits for 10 classes"),
    "training": (partial(Net, lambda n, a: (z(n, a), a) if n.training else z(n, a)), {},
                 "returns a tuple in training: it must return the logits"),
    "pair_cut": (partial(Net, lambda n, a: (z(n, a), a)), {"branch_at": "b"},
                 "returns a tuple: it must return the logits"),
    "pair_crosses": (partial(Net, lambda n, a: n.fc(h(n.pick(n.pair(a))))), {"branch_at": "pick"},
                     "cannot be cut at pick, because a tuple crosses the cut, not one tensor"),
    "random": (partial(Net, lambda n, a: z(n, a) if n.training and torch.rand(()) < 0.5 else n.fc(h(a + n.b(a)))),
               {"branch_at": "b"}, "because its code .* draws random numbers"),
    "python_random": (partial(Net, lambda n, a: n.fc(h(n.b(a if random.random() < 0.5 else -a)))), {"branch_at": "b"},
                      "because its code .* draws random numbers"),
    "lazy": (lambda num_classes: nn.LazyLinear(num_classes), {}, "<lambda> has lazy layers"),
    "counts": (partial(Net, lambda n, a: z(n, a) / n.count.add_(1)), {"branch_at": "b"},
               "cannot be traced .*: its code changes a buffer"),
    "recounts": (partial(Net, lambda n, a: setattr(n, "count", n.count + 1) or z(n, a) / n.count), {"branch_at": "b"},
                 "cannot be traced .*: its code changes a buffer"),
    "fails": (partial(Net, lambda n, a: a.means()), {},
              r"does not take images of 32x32 \(AttributeError: .* test_external.py line"),
    "two_values": (partial(Net, lambda n, a: n.fc(h(n.b(a.relu()) + a))), {"branch_at": "b"},
                   r"2 values cross the cut \(.*\), not one .*: --branch_at fc$"),
    "not_traced": (partial(Net, lambda n, a: n.fc(h(n.b(a) if a.mean() > 0 else a))), {"branch_at": "b"},
                   r"cannot be traced .* no submodule .* \(--MulStu\)"),
    "shared": (tied, {"branch_at": "b"}, "both sides of the cut use the weights a.weight"),
    "first": ("own:CNN", {"branch_at": "stem"}, "cannot be cut at stem, because no layer comes before it"),
    "small": ("torchvision:alexnet", {"branch_at": "classifier"}, "does not take images of 32x32"),
    "detection": ("torchvision:fasterrcnn_resnet50_fpn", {}, "torchvision has no classification network"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_network_that_cannot_be_used_says_why(own, case):
    network, options, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence) as error:
        models.create_model(own(network) if isinstance(network, str) else network, 10, **options)
    assert "\n" not in str(error.value)


def channels_last(num_classes):
    return nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), torchvision.ops.Permute([0, 2, 3, 1]), nn.Linear(5, 6),
                         torchvision.ops.Permute([0, 3, 1, 2]), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(6, num_classes))


@pytest.mark.parametrize(("group", "network", "place", "sentence"), [
    (models.FFL, "own:CNN", "last", "FFL fuses the last feature maps of the branches, which .*:CNN does not give"),
    (models.ONE, "own:CNN", "fc", "ONE's gate pools a feature map .*, which .*:CNN does not have at the cut"),
    (models.ONE, channels_last, "2", "ONE's gate pools a feature map .*, which channels_last does not have at")])
def test_groups_that_need_feature_maps(own, group, network, place, sentence):
    with pytest.raises(ValueError, match=sentence):
        group(network if callable(network) else own(network), 10, 2, branch_at=place)


@pytest.mark.parametrize(("source", "said"), [
    ("raise SystemExit(2)", r"SystemExit: 2, own.py line 1\)$"),
    ("import nowhere", r"ModuleNotFoundError: No module named 'nowhere'.*\)$"),
    *((line, r".*\): .*models/__init__.py hides the models next to it: give yours another name$")
      for line in ("from models import Net", "import models; models.Net", "import models.net"))])
def test_a_file_that_cannot_be_imported_says_why(own, tmp_path, source, said):
    (tmp_path / "models.py").write_text("Net = None\n")
    with pytest.raises(ValueError, match=rf"own.py cannot be imported \({said}"):
        models.create_model(own("own:CNN", source), 10)


def test_students_cannot_get_the_same_weights():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

    def make(num_classes):
        return nn.Sequential(network, nn.ReLU(), nn.Linear(10, num_classes))

    for network_based, options in ((True, {}), (False, {"branch_at": "1"})):
        with pytest.raises(ValueError, match="make returns the same weights at each call, and students must have"):
            models.Branches(make, 10, 2, network_based, **options)


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm:resnet10t needs a package that is not installed: pip install timm"):
        models.create_model("timm:resnet10t", 10)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:resnet10t"])
def test_weights_that_cannot_be_downloaded_are_one_line(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.hub.urlopen", Mock(side_effect=OSError("no network")))
    with pytest.raises(ValueError, match=f"the weights of {name} cannot be downloaded .* without --pretrained"):
        models.create_model(name, 10, pretrained=True)


def test_pretrained_weights_are_the_librarys_but_for_a_classifier_of_other_classes(monkeypatch):
    theirs = torchvision.models.mobilenet_v3_small()
    weights = torchvision.models.MobileNet_V3_Small_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **options: theirs.state_dict())
    for num_classes in (1000, 10):
        network = models.create_model("torchvision:mobilenet_v3_small", num_classes, pretrained=True, image_size=64)
        new = [f"classifier.3.{name}" for name in ("weight", "bias")] if num_classes == 10 else []
        assert network.head.new_weights == new
        for key, value in network.own_state_dict().items():
            assert key in new or torch.equal(value, theirs.state_dict()[key])


class InPlace(nn.Module):
    """Changes the images, and the values at the cut. Uses the weight of a part that it does not call."""

    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.place, self.fc = nn.Conv2d(3, 4, 3), nn.Embedding(4, 1), nn.Linear(4, num_classes)
        self.last = nn.Sequential(nn.SiLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x):
        return self.fc(self.last(self.stem(x.sub_(0.5)) + self.place.weight[..., None]))


def in_place_dropout(num_classes):
    """It changes its input in training only."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Linear(4, num_classes)))


@pytest.mark.parametrize(("network", "options"), [
    (InPlace, {"branch_at": "last"}), (InPlace, {"network_based": True}), (in_place_dropout, {"branch_at": "3"})])
def test_a_student_does_not_change_the_input_of_the_others(network, options):
    group, images = models.Branches(network, 5, 3, **options), torch.randn(2, 3, 8, 8)
    kept = images.clone()
    z = torch.stack([group.student(i).eval()(images.clone()) for i in range(3)], 1)
    torch.testing.assert_close(group.eval()(images), z)
    group.train()(images).sum().backward()
    assert images.equal(kept)


def test_the_check_of_a_network_changes_none_of_its_buffers():
    counting = partial(Net, lambda n, a: setattr(n, "count", n.count + 1) or z(n, a))
    assert models.create_model(counting, 10).head.network.count == 1


class Frozen(nn.Module):
    """Its stem stays in evaluation mode; ``train`` returns nothing. A single image loses its first dimension."""

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.last, self.fc = nn.Sequential(nn.Conv2d(8, 4, 3, 2, 1), nn.BatchNorm2d(4)), nn.Linear(4, num_classes)

    def train(self, mode=True):
        super().train(mode)
        self.stem.eval()

    def forward(self, x):
        return self.fc(self.last(self.stem(x)).mean((2, 3)).squeeze())


@pytest.mark.parametrize("at", [None, "last"])
def test_a_network_may_have_a_train_of_its_own(at):
    network = models.OKDDip(Frozen, 10, 3, network_based=at is None, branch_at=at).student(0)
    network.train()
    of_stem, of_last = network.trunk if at else network.head, network.head
    assert of_last.network.last[1].training and not of_stem.network.stem[1].training
    assert network.own_state_dict().keys() == Frozen(10).state_dict().keys()


def test_synchronised_batchnorm_computes_what_the_layer_has_computed():
    """Names and logits stay; timm's layers keep their activations. On CPUs it runs in evaluation mode only."""
    for make in (lambda: models.ONE("resnet8", 10, 3), lambda: models.create_model("timm:mobilenetv3_small_050", 10)):
        model, images = make(), torch.randn(4, 3, 32, 32)
        model(images)  # statistics that differ from 0 and 1
        before, logits = list(model.state_dict()), model.eval()(images)
        converted = models.synchronise(model)
        kinds = {type(m).__name__ for m in converted.modules() if "Norm" in type(m).__name__}
        assert all(kind.startswith("SyncBatchNorm") for kind in kinds) and list(converted.state_dict()) == before
        torch.testing.assert_close(converted(images), logits)

    class Own(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    with pytest.raises(ValueError, match="--sync_bn: Own is not PyTorch's BatchNorm, and may compute more"):
        models.synchronise(nn.Sequential(nn.BatchNorm2d(3), Own(3)))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_init_starts_every_student_from_the_file(own, tmp_path, ending):
    from safetensors.torch import save_file

    name, file = own("own:CNN"), str(tmp_path / f"weights.{ending}")
    start = models.create_model(name, 7).own_state_dict()
    if ending == "pth":  # the weights of a network without its classifier
        start = {key: value for key, value in start.items() if not key.startswith("fc.")}
    save_file(start, file) if ending == "safetensors" else torch.save({"state_dict": start}, file)
    group = models.Branches(name, 10, 3, branch_at="last", init=file)
    for i in range(3):
        state = group.student(i).own_state_dict()
        assert all(torch.equal(state[key], start[key]) for key in start if not key.startswith("fc."))
        assert group.heads[i].new_weights == ["fc.weight", "fc.bias"]
    assert len({head.network.fc.bias.sum().item() for head in group.heads}) == 3  # drawn for each


@pytest.mark.parametrize(("change", "sentence"), {
    "missing": (lambda state: state.pop("scale"), "1 are missing, the first is scale"),
    "unknown": (lambda state: state.update(other=torch.zeros(1)), "1 are unknown, the first is other"),
    "shape": (lambda state: state.update(scale=torch.zeros(3)), "1 are of another shape, the first is scale"),
    "unreadable": (None, ""),
}.values())
def test_init_that_does_not_fit_is_one_line(own, tmp_path, change, sentence):
    name, file = own("own:CNN"), tmp_path / "weights.pth"
    state = models.create_model(name, 10).own_state_dict()
    if change:
        change(state)
    torch.save(state, file) if change else file.write_bytes(b"no weights")
    said = f"cannot start from .*weights.pth: {sentence}" if change else "--init: .*weights.pth cannot be read"
    with pytest.raises(ValueError, match=said):
        models.create_model(name, 10, init=str(file))


@pytest.mark.parametrize("at", [None, "last"])
def test_networks_can_be_pickled_and_copied(own, at):
    network = models.create_model(own("own:CNN"), 10, branch_at=at)
    images = torch.randn(2, 3, 32, 32)
    expected = tried(network, lambda: network(images))
    before = torch.get_rng_state()
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(tried(other, lambda other=other: other(images)), expected)
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in network.parameters()}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("at", [None, "last"])
def test_networks_can_be_compiled(own, at):
    network = models.create_model(own("own:CNN"), 10, branch_at=at).eval()
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(network, backend="aot_eager")
    torch.testing.assert_close(compiled(images), network(images))
    h, z = torch.compile(network.head, backend="aot_eager")(network.trunk(images))
    torch.testing.assert_close(nn.functional.linear(h, *network.head.network.fc.parameters()) / 2, z)


def test_timm_has_constants_and_sizes_of_its_own():
    assert models.normalisation("timm:vit_tiny_patch16_224") == ((0.5,) * 3, (0.5,) * 3)
    assert models.default_size("timm:test_vit") == 160
