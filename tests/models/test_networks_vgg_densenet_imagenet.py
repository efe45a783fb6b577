"""VGG, DenseNet and torchvision's ResNets as trunk + head.

What the authors' checkpoints look like is written down here a second time, by hand, together with a functional
forward that reads their names, so that neither models/official.py nor the modules are compared with themselves.
"""

import math
import zlib

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import models


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors: where other programs run too, threads that wait for each other take several times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images(batch: int, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def filled(shapes: dict[str, tuple]) -> dict[str, Tensor]:
    """Float64 weights that depend on their names alone, of a size that keeps signals alive through the layers."""
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())),
                             dtype=torch.float64)
        if name.endswith("num_batches_tracked"):
            values = torch.tensor(0)
        elif name.endswith("running_var"):
            values = 1 + 0.1 * values.abs()
        elif len(shape) > 1:
            values *= math.sqrt(2 / (values.numel() / shape[0]))
        elif name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        weights[name] = values
    return weights


# --- the authors' names and shapes, part by part; VGG has no final norm, hence an unused argument ----------------


def norm(name: str, channels: int) -> dict[str, tuple]:
    return {**{f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")},
            f"{name}.num_batches_tracked": ()}


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def vgg_conv(name: str, inputs: int, outputs: int) -> dict[str, tuple]:
    return {f"{name}.weight": (outputs, inputs, 3, 3), f"{name}.bias": (outputs,)}


def vgg_stage(name: str, inputs: int, outputs: int, convolutions: int) -> dict[str, tuple]:
    shapes = {}
    for i in range(convolutions):
        shapes |= vgg_conv(f"{name}.{3 * i}", outputs if i else inputs, outputs)
        shapes |= norm(f"{name}.{3 * i + 1}", outputs)
    return shapes


def vgg_trunk(convolutions: int) -> dict[str, tuple]:
    return {**vgg_conv("conv1", 3, 64), **norm("bn1", 64), **vgg_conv("conv2", 64, 64), **norm("bn2", 64),
            **vgg_stage("layer1", 64, 128, 2), **vgg_stage("layer2", 128, 256, convolutions),
            **vgg_stage("layer3", 256, 512, convolutions)}


def vgg_head(convolutions: int, classes: int, block: str = "layer4", final: str = "",
             classifier: str = "classifier") -> dict[str, tuple]:
    return {**vgg_stage(block, 512, 512, convolutions), **linear(f"{classifier}.0", 512, 512),
            **linear(f"{classifier}.3", 512, 512), **linear(f"{classifier}.6", 512, classes)}


def dense_block(name: str, channels: int, layers: int) -> dict[str, tuple]:
    shapes = {}
    for j in range(layers):
        layer = f"{name}.denselayer{j + 1}"
        shapes |= norm(f"{layer}.norm1", channels + 12 * j) | {f"{layer}.conv1.weight": (48, channels + 12 * j, 1, 1)}
        shapes |= norm(f"{layer}.norm2", 48) | {f"{layer}.conv2.weight": (12, 48, 3, 3)}
    return shapes


def densenet_trunk(layers: int) -> dict[str, tuple]:
    assert layers == 6
    return {"features.conv0.weight": (24, 3, 3, 3),
            **dense_block("features.denseblock1", 24, 6),
            **norm("features.transition1.norm", 96), "features.transition1.conv.weight": (48, 96, 1, 1),
            **dense_block("features.denseblock2", 48, 6),
            **norm("features.transition2.norm", 120), "features.transition2.conv.weight": (60, 120, 1, 1)}


def densenet_head(layers: int, classes: int, block: str = "features.denseblock3", final: str = "features.norm_final",
                  classifier: str = "classifier") -> dict[str, tuple]:
    return {**dense_block(block, 60, layers), **norm(final, 132), **linear(classifier, 132, classes)}


# --- functional forwards (eval mode) that read those names ------------------------------------------------------


def batch_norm_relu(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    mean, var, weight, bias = (w[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, mean, var, weight, bias))


def vgg_forward(w: dict[str, Tensor], x: Tensor, convolutions: int, block: str = "layer4", final: str = "",
                classifier: str = "classifier") -> tuple[Tensor, Tensor]:
    def conv(x: Tensor, conv: str, norm: str) -> Tensor:
        return batch_norm_relu(F.conv2d(x, w[f"{conv}.weight"], w[f"{conv}.bias"], padding=1), w, norm)

    x = F.max_pool2d(conv(conv(x, "conv1", "bn1"), "conv2", "bn2"), 2)
    for stage, n in (("layer1", 2), ("layer2", convolutions), ("layer3", convolutions), (block, convolutions)):
        for i in range(n):
            x = conv(x, f"{stage}.{3 * i}", f"{stage}.{3 * i + 1}")
        x = F.max_pool2d(x, 2)
    h = z = x.reshape(len(x), 512)
    for i in (0, 3, 6):
        z = F.linear(z if i == 0 else F.relu(z), w[f"{classifier}.{i}.weight"], w[f"{classifier}.{i}.bias"])
    return h, z


def densenet_forward(w: dict[str, Tensor], x: Tensor, layers: int, block: str = "features.denseblock3",
                     final: str = "features.norm_final", classifier: str = "classifier") -> tuple[Tensor, Tensor]:
    x = F.conv2d(x, w["features.conv0.weight"], padding=1)
    for i, name in enumerate(("features.denseblock1", "features.denseblock2", block), start=1):
        for j in range(1, layers + 1):
            layer = f"{name}.denselayer{j}"
            new = F.conv2d(batch_norm_relu(x, w, f"{layer}.norm1"), w[f"{layer}.conv1.weight"])
            new = F.conv2d(batch_norm_relu(new, w, f"{layer}.norm2"), w[f"{layer}.conv2.weight"], padding=1)
            x = torch.cat([x, new], 1)
        if i < 3:
            transition = f"features.transition{i}"
            x = F.conv2d(batch_norm_relu(x, w, f"{transition}.norm"), w[f"{transition}.conv.weight"])
            x = F.avg_pool2d(x, 2)
    h = batch_norm_relu(x, w, final).mean((2, 3))
    return h, F.linear(h, w[f"{classifier}.weight"], w[f"{classifier}.bias"])


# name -> depth of a stage or block, D, and what is written above
FAMILIES = {
    "vgg16": (3, 512, vgg_trunk, vgg_head, vgg_forward),
    "vgg19": (4, 512, vgg_trunk, vgg_head, vgg_forward),
    "densenetd40k12": (6, 132, densenet_trunk, densenet_head, densenet_forward),
}


def branch_names(name: str, i: int, okddip: bool) -> dict[str, str]:
    """Where branch i of a branch-based checkpoint keeps its last stage, final norm (DenseNet) and classifier."""
    dense_okddip = okddip and name.startswith("densenet")
    return {"block": f"Branch{i}" if dense_okddip else f"layer3_{i}", "final": f"norm_final_{i}",
            "classifier": f"classifier3_{i}"}


def plain_checkpoint(name: str, classes: int) -> dict[str, Tensor]:
    depth, _, trunk, head, _ = FAMILIES[name]
    return filled({**trunk(depth), **head(depth, classes)})


def branch_checkpoint(name: str, classes: int, m: int, okddip: bool, extra: dict[str, tuple]) -> dict[str, Tensor]:
    depth, _, trunk, head, _ = FAMILIES[name]
    shapes = trunk(depth) | extra
    for i in range(m):
        shapes |= head(depth, classes, **branch_names(name, i, okddip))
    return filled(shapes)


def branch_forward(name: str, w: dict[str, Tensor], x: Tensor, m: int, okddip: bool) -> tuple[Tensor, Tensor]:
    """Features [B, m, D] and logits [B, m, C] that a branch-based checkpoint stands for."""
    depth, _, _, _, forward = FAMILIES[name]
    h, z = zip(*(forward(w, x, depth, **branch_names(name, i, okddip)) for i in range(m)), strict=True)
    return torch.stack(h, 1), torch.stack(z, 1)


def loaded(model: nn.Module, checkpoint: dict[str, Tensor]) -> nn.Module:
    model.double()
    models.load_official_state_dict(model, checkpoint)
    return model.eval()


# --- size and shape ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "classes", "count"), [
    ("vgg16", 10, 15_253_578), ("densenetd40k12", 10, 176_122),  # the paper authors' networks
    ("densenetd100k12", 10, 769_162),  # Huang et al. 2017, Table 2: 0.8M
    ("resnet18", 1000, 11_689_512), ("resnet34", 1000, 21_797_672), ("resnet50", 1000, 25_557_032),  # torchvision's
])
def test_parameter_counts(name, classes, count):
    assert sum(p.numel() for p in models.create_model(name, classes).parameters()) == count


def test_vgg19_has_one_more_convolution_in_each_of_three_stages():
    def count(name):
        return sum(p.numel() for p in models.create_model(name, 10).parameters())

    assert count("vgg19") - count("vgg16") == sum(9 * c * c + 3 * c for c in (256, 512, 512))


def test_branch_based_counts_follow():
    m, trunk, head = 3, 115_848, 60_274
    assert trunk + head == 176_122
    group = models.OKDDip("densenetd40k12", 10, m)
    assert sum(p.numel() for p in group.trunks.parameters()) == trunk
    assert sum(p.numel() for p in group.parameters()) == trunk + m * head + 2 * 132 * (132 // 8)


@pytest.mark.parametrize(("name", "size", "x_shape", "width"), [
    ("vgg16", 32, (512, 2, 2), 512), ("vgg19", 32, (512, 2, 2), 512),
    ("densenetd40k12", 32, (60, 8, 8), 132), ("densenetd100k12", 32, (150, 8, 8), 342),
    ("resnet18", 64, (256, 4, 4), 512), ("resnet34", 64, (256, 4, 4), 512), ("resnet50", 64, (1024, 4, 4), 2048),
])
def test_shapes(name, size, x_shape, width):
    network = models.create_model(name, 7, dropout=0.0, efficient=False).eval()  # every network takes both, off
    with torch.no_grad():
        x = network.trunk(images(2, size))
        h, z = network.head(x)
        logits = network(images(2, size))
    assert x.shape == (2, *x_shape) and network.trunk.width == x_shape[0]
    assert h.shape == (2, width) and network.head.width == width
    assert z.shape == (2, 7) and torch.equal(z, logits)


def test_every_branch_owns_its_last_stage():
    group = models.Branches("densenetd40k12", 10, 3).eval()
    parameters = [{id(p) for p in head.parameters()} for head in group.heads]
    assert not parameters[0] & parameters[1] and not parameters[1] & parameters[2]
    with torch.no_grad():
        before = group(images(2))
        group.heads[1].features.denseblock3.denselayer1.conv2.weight.mul_(2)
        changed = (group(images(2)) != before).any(-1).any(0)
    assert changed.tolist() == [False, True, False]


# --- the authors' checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg19", "densenetd40k12"])
def test_official_plain(name):
    depth, _, _, _, forward = FAMILIES[name]
    checkpoint, x = plain_checkpoint(name, 10), images(2).double()
    network = loaded(models.create_model(name, 10), {f"module.{key}": value for key, value in checkpoint.items()})
    h, z = forward(checkpoint, x, depth)
    with torch.no_grad():
        ours = network.head(network.trunk(x))
    assert len(network.state_dict()) == len(checkpoint)
    torch.testing.assert_close(ours, (h, z))


@pytest.mark.parametrize("name", ["vgg16", "densenetd40k12"])
def test_official_okddip_branches(name):
    width, m, x = FAMILIES[name][1], 3, images(2).double()
    attention = {f"{part}_weight.weight": (width // 8, width) for part in ("query", "key")}
    checkpoint = branch_checkpoint(name, 10, m, okddip=True, extra=attention)
    with torch.no_grad():
        peers, targets, leader = loaded(models.OKDDip(name, 10, m), checkpoint)(x)
    h, z = branch_forward(name, checkpoint, x, m, okddip=True)
    L, E = (h[:, :-1] @ checkpoint[f"{part}_weight.weight"].T for part in ("query", "key"))
    torch.testing.assert_close(peers, z[:, :-1])
    torch.testing.assert_close(leader, z[:, -1])
    torch.testing.assert_close(targets, torch.softmax(L @ E.transpose(1, 2), -1) @ z[:, :-1])


@pytest.mark.parametrize(("name", "trunk_width"), [("vgg16", 512), ("densenetd40k12", 60)])
def test_official_one(name, trunk_width):
    m, x = 2, images(2).double()
    gate = linear("control_v1", trunk_width, m) | norm("bn_v1", m)
    checkpoint = branch_checkpoint(name, 10, m, okddip=False, extra=gate)
    group = loaded(models.ONE(name, 10, m), checkpoint)
    with torch.no_grad():
        branches, ensemble = group(x)
        pooled = group.trunks[0](x).mean((2, 3))
    g = F.linear(pooled, checkpoint["control_v1.weight"], checkpoint["control_v1.bias"])
    g = torch.softmax(batch_norm_relu(g, checkpoint, "bn_v1"), -1)
    _, z = branch_forward(name, checkpoint, x, m, okddip=False)
    torch.testing.assert_close(branches, z)
    torch.testing.assert_close(ensemble, (g.unsqueeze(-1) * z).sum(1))


@pytest.mark.parametrize("name", ["vgg16", "densenetd40k12"])
def test_official_networks(name):
    m, x = 2, images(2).double()
    depth, _, trunk, head, forward = FAMILIES[name]
    shapes = {f"stu{i}.{key}": shape for i in range(m) for key, shape in {**trunk(depth), **head(depth, 10)}.items()}
    checkpoint = filled(shapes)
    with torch.no_grad():
        logits = loaded(models.Branches(name, 10, m, network_based=True), checkpoint)(x)
    for i in range(m):
        weights = {key.removeprefix(f"stu{i}."): value for key, value in checkpoint.items()}
        torch.testing.assert_close(logits[:, i], forward(weights, x, depth)[1])


@pytest.mark.parametrize(("okddip", "name", "lost"), [
    (None, "vgg16", "layer2.7.running_mean"),
    (None, "vgg16", "classifier.3.bias"),
    (None, "densenetd40k12", "features.transition2.conv.weight"),
    (True, "vgg16", "layer3_1.6.weight"),  # the stage's third convolution
    (True, "densenetd40k12", "Branch1.denselayer6.conv2.weight"),
    (False, "densenetd40k12", "norm_final_0.bias"),
])
def test_official_names_what_is_missing_or_misshaped(okddip, name, lost):
    if okddip is None:
        model, checkpoint = models.create_model(name, 10), plain_checkpoint(name, 10)
    else:
        model, checkpoint = models.Branches(name, 10, 2), branch_checkpoint(name, 10, 2, okddip, extra={})
    models.load_official_state_dict(model, checkpoint)
    value = checkpoint.pop(lost)
    with pytest.raises(ValueError, match=f"no .*{lost}"):
        models.load_official_state_dict(model, checkpoint)
    with pytest.raises(ValueError, match=f"{lost}.* shape"):
        models.load_official_state_dict(model, checkpoint | {lost: value.repeat(*[2] * value.dim())})


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_imagenet_equals_torchvision(name):
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    theirs.load_state_dict(filled({key: tuple(value.shape) for key, value in theirs.state_dict().items()}))
    ours = models.create_model(name, 1000).eval()
    models.load_official_state_dict(ours, theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(images(2, 64)), theirs(images(2, 64)))


@pytest.mark.parametrize(("block", "classifier"), [
    ("layer4_{i}", "classifier4_{i}"), ("layer3_{i}", "classifier3_{i}"), ("layer4_{i}", "fc_{i}"),
])
def test_imagenet_official_branches(block, classifier):
    theirs, m, x = torchvision.models.resnet18(weights=None, num_classes=5).double().eval(), 2, images(2, 64).double()
    shapes, heads = {}, []
    for key, value in theirs.state_dict().items():
        part, rest = key.split(".", 1)
        if part in ("layer4", "fc"):
            named = block if part == "layer4" else classifier
            names = [f"{named.format(i=i)}.{rest}" for i in range(m)]
            heads.append((key, names))
        else:
            names = [key]
        shapes |= dict.fromkeys(names, tuple(value.shape))
    checkpoint = filled(shapes)
    with torch.no_grad():
        logits = loaded(models.Branches("resnet18", 5, m), checkpoint)(x)
        for i in range(m):
            branch = {key: value for key, value in checkpoint.items() if key in theirs.state_dict()}
            theirs.load_state_dict(branch | {key: checkpoint[names[i]] for key, names in heads})
            torch.testing.assert_close(logits[:, i], theirs(x))


# --- initialisation ---------------------------------------------------------------------------------------------


def assert_std(weight: Tensor, std: float):
    """Within five standard errors of the estimate, for a normal distribution with mean 0."""
    assert abs(weight.std().item() / std - 1) < 5 / math.sqrt(2 * weight.numel())
    assert abs(weight.mean().item()) < 5 * std / math.sqrt(weight.numel())


@pytest.mark.parametrize(("name", "fan"), [("vgg16", 0), ("densenetd40k12", 1), ("resnet18", 0)])
def test_convolutions_start_kaiming_normal(name, fan):
    """fan: the dimension of the weight that counts, 0 for fan_out, 1 for fan_in."""
    torch.manual_seed(0)
    group = models.Branches(name, 10, 2)
    for m in group.modules():
        if isinstance(m, nn.Conv2d):
            assert_std(m.weight, math.sqrt(2 / (m.weight.shape[fan] * m.weight[0, 0].numel())))
            assert m.bias is None or not m.bias.any()
        elif isinstance(m, nn.BatchNorm2d):
            assert (m.weight == 1).all() and not m.bias.any()


@pytest.mark.parametrize("make", [lambda: models.OKDDip("vgg16", 10, 2), lambda: models.ONE("vgg16", 10, 2)])
def test_vgg_linears_start_small(make):
    torch.manual_seed(0)
    model = make()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert {"heads.1.classifier.6", *(["aggregation.W_L", "aggregation.W_E"] if hasattr(model, "aggregation")
                                      else ["gate.linear"])} < set(linears)
    for m in linears.values():
        assert_std(m.weight, 0.01)
        assert m.bias is None or not m.bias.any()


def test_densenet_linears_start_as_pytorch_makes_them_but_for_the_classifiers_bias():
    torch.manual_seed(0)
    one, okddip = models.ONE("densenetd40k12", 10, 3), models.OKDDip("densenetd40k12", 10, 3)
    assert all(not head.classifier.bias.any() for head in [*one.heads, *okddip.heads])
    assert one.gate.linear.bias.all()
    for m in (one.heads[0].classifier, one.gate.linear, okddip.aggregation.W_L, okddip.aggregation.W_E):
        bound = 1 / math.sqrt(m.in_features)  # uniform between -bound and bound
        assert m.weight.abs().max() <= bound
        assert m.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)


def test_imagenet_linears_start_as_pytorch_makes_them():
    torch.manual_seed(0)
    group = models.OKDDip("resnet18", 10, 2)
    for m in (group.heads[0].fc, group.aggregation.W_L, group.aggregation.W_E):
        assert m.weight.std().item() == pytest.approx(1 / math.sqrt(3 * 512), rel=0.05)
    assert group.heads[0].fc.bias.all()


# --- options ----------------------------------------------------------------------------------------------------


def train(model: nn.Module, outputs, steps: int, dtype: torch.dtype) -> list[float]:
    """SGD with momentum on squared outputs; outputs(images) -> tensor."""
    model.to(dtype).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for step in range(steps):
        loss = outputs(images(4, 16, seed=step).to(dtype)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same(a: nn.Module, b: nn.Module):
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, different


def pair(make) -> list[nn.Module]:
    """The model without and with --efficient, from the same weights."""
    plain, efficient = make(efficient=False), make(efficient=True)
    efficient.load_state_dict(plain.state_dict())
    return [plain, efficient]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_efficient_trains_to_the_same_bits(dtype):
    steps = 3
    plain, efficient = pair(lambda **options: models.OKDDip("densenetd40k12", 10, 3, **options))
    start = {name: value.clone() for name, value in plain.state_dict().items()}
    runs = [train(m, lambda x, m=m: torch.cat([y.flatten() for y in m(x)]), steps, dtype) for m in (plain, efficient)]
    assert runs[0] == runs[1]
    assert_same(plain, efficient)
    for name, value in efficient.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # these count when they are saved, not in forward
            assert not torch.equal(value, start[name].to(dtype)), f"{name} stood still"


def test_efficient_counts_statistics_once_where_forward_leaves_them():
    """Backward moves no statistic: neither the running ones nor the counter, nor the buffers' identity."""
    network = models.create_model("densenetd40k12", 10, efficient=True).train()
    loss = network(images(4, 16)).sum()
    buffers = {name: (buffer, buffer.clone()) for name, buffer in network.named_buffers()}
    loss.backward()
    for name, buffer in network.named_buffers():
        assert buffer is buffers[name][0] and torch.equal(buffer, buffers[name][1]), name


def test_efficient_under_autocast():
    def outputs(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    plain, efficient = pair(lambda **options: models.create_model("densenetd40k12", 10, **options))
    runs = [train(m, lambda x, m=m: outputs(m, x), 2, torch.float32) for m in (plain, efficient)]
    assert runs[0] == runs[1]
    assert_same(plain, efficient)


def test_efficient_keeps_less_for_backward():
    def kept(model: nn.Module) -> int:
        storages = {}  # the tensors too, so that no address is used twice

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model.train()(images(4))
        assert logits.requires_grad
        return sum(t.untyped_storage().nbytes() for pointer, t in storages.items() if pointer not in parameters)

    plain, efficient = (kept(m) for m in pair(lambda **o: models.create_model("densenetd100k12", 10, **o)))
    assert efficient < 0.4 * plain


def test_efficient_in_eval_mode():
    plain, efficient = pair(lambda **options: models.create_model("densenetd40k12", 10, **options))
    with torch.no_grad():
        assert torch.equal(plain.eval()(images(2)), efficient.eval()(images(2)))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    group = models.OKDDip("vgg16", 10, 2, dropout=0.5)
    x = torch.randn(4, 512)
    for head in group.heads:
        assert [m.p for m in head.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
        assert not torch.equal(head.classifier(x), head.classifier(x))
        head.eval()
        assert torch.equal(head.classifier(x), head.classifier(x))
        hidden = head.train().classifier[:3](x)
        positive = head.classifier[:2](x) > 0
        assert 0.4 < (hidden[positive] == 0).float().mean() < 0.6


def test_no_dropout_by_default():
    classifier = models.create_model("vgg16", 10).train().head.classifier
    x = torch.randn(4, 512)
    assert torch.equal(classifier(x), classifier(x))


def test_options_are_off_by_default_and_may_be_given_off():
    models.create_model("resnet8", 10, dropout=0.0, efficient=False)
    models.OKDDip("resnet8", 10, 2, dropout=0.0, efficient=False)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("resnet8", {"dropout": 0.5}, "--dropout is for vgg16, vgg19: resnet8 does not have it"),
    ("densenetd40k12", {"dropout": 0.5}, "--dropout is for .*densenetd40k12"),
    ("resnet18", {"dropout": 0.5, "efficient": False}, "--dropout is for .*resnet18"),
    ("vgg16", {"efficient": True}, "--efficient is for densenetd40k12, densenetd100k12: vgg16 does not have it"),
    ("resnet8", {"dropout": 0.0, "efficient": True}, "--efficient is for .*resnet8"),
])
def test_options_of_other_networks_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create_model(name, 10, **options)
    for group in (models.Branches, models.OKDDip, models.ONE, models.CLILR):
        with pytest.raises(ValueError, match=message):
            group(name, 10, num_branches=2, **options)


def test_unknown_option_is_refused():
    with pytest.raises(TypeError, match="drop"):
        models.create_model("vgg16", 10, drop=0.5)
