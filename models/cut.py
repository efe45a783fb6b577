"""Cut a network in two at a submodule, by torch.fx."""

import inspect
import operator
import random
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import fx, nn


class Outline(fx.Tracer):
    """Traces the code of the modules that contain the cut or the classifier. Every other module stays in one piece."""

    def __init__(self, opened: set[str]):
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name not in self.opened


class Side(NamedTuple):
    """One side of a cut. code(network, x): what it computes. used: the names of what it needs of the network."""

    code: Callable
    used: set[str]


class Cut(NamedTuple):
    trunk: Side
    tail: Side


def opened(place: str, classifier: str) -> set[str]:
    """The names of the modules that contain one of the two; "" is the network."""
    return {name[:i] for name in (place, classifier) for i, letter in enumerate(name) if letter == "."} | {""}


def pieces(network: nn.Module, place: str, classifier: str) -> list[str]:
    """The names of the submodules, weights and buffers that an outline leaves in one piece."""
    inside = opened(place, classifier)
    names = []
    for path in sorted(inside):
        module = network.get_submodule(path)
        for child in (*module._modules, *module._parameters, *module._buffers):
            name = f"{path}.{child}" if path else child
            if name not in inside and getattr(module, child) is not None:
                names.append(name)
    return names


def outline(network: nn.Module, place: str, classifier: str) -> fx.Graph:
    """The graph of a network, in its mode. Arguments of forward besides the images keep their defaults."""
    others = [p for p in inspect.signature(network.forward).parameters.values()][1:]
    defaults = {p.name: p.default for p in others if p.default is not inspect.Parameter.empty}
    before, buffers = drawn(), {name: buffer.clone() for name, buffer in network.named_buffers()}
    graph = Outline(opened(place, classifier)).trace(network, concrete_args=defaults or None)
    if before != drawn():  # they would be drawn here once, and never again
        raise ValueError("its code draws random numbers, which a traced graph would keep")
    after = dict(network.named_buffers())
    if not all(after[name].allclose(value, rtol=0, atol=0, equal_nan=True) for name, value in buffers.items()):
        raise ValueError("its code changes a buffer, which a traced graph would not do")
    _, *more = (node for node in graph.nodes if node.op == "placeholder")
    for node in more:
        for check in list(node.users):  # fx checks that they have their defaults
            for user in list(check.users):
                graph.erase_node(user)
            graph.erase_node(check)
        graph.erase_node(node)
    return graph


def drawn() -> tuple:
    """The states of the generators of PyTorch, Python and NumPy."""
    _, keys, place, *_ = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), place


def cut(network: nn.Module, place: str, classifier: str) -> Cut:
    """Cut a network, in its mode, in front of the submodule ``place``. ValueError: it cannot be cut there."""
    try:
        graph = outline(network, place, classifier)
    except Exception as error:  # of the network's code, which meets stand-ins for tensors
        raise ValueError(f"its code cannot be traced ({origin(error)})") from error
    nodes = list(graph.nodes)
    start = next((i for i, node in enumerate(nodes) if is_inside(node, place)), None)
    calls = [node for node in nodes if node.op == "call_module" and node.target == classifier]
    if start is None or len(calls) != 1 or nodes.index(calls[0]) < start:
        raise ValueError(f"it does not run {place} before its classifier {classifier}, and the classifier once")
    before, after = nodes[:start], nodes[start:]
    crossing = [node for node in before if set(node.users) & set(after)
                and node.op != "get_attr" and not is_batch_size(node)]
    if len(crossing) != 1:
        raise ValueError(f"{len(crossing)} values cross the cut ({', '.join(node.name for node in crossing)}), not one "
                         "tensor")
    if crossing[0].op == "placeholder":
        raise ValueError("no layer comes before it")
    trunk, tail = split(before, after, crossing[0], first(calls[0].args, calls[0].kwargs))
    sides = Cut(*(Side(type(fx.GraphModule(network, graph)).forward, names(graph)) for graph in (trunk, tail)))
    if common := weights(network, sides.trunk.used) & weights(network, sides.tail.used):
        raise ValueError(f"both sides of the cut use the weights {sorted(common)[0]}")
    return sides


def first(inputs: tuple, named: dict):
    """The first input of a module that is called with these."""
    return (*inputs, *named.values())[0]


def is_inside(node: fx.Node, place: str) -> bool:
    """Whether the node is part of the submodule."""
    return any(path == place for path, _ in node.meta.get("nn_module_stack", {}).values())


def is_batch_size(node: fx.Node) -> bool:
    """Whether the node is x.size(0) or x.shape[0]. Both sides of a cut know it."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    if node.target is not operator.getitem or node.args[1] != 0 or not isinstance(node.args[0], fx.Node):
        return False
    return node.args[0].target in (getattr, "size") and node.args[0].args[1:] in ((), ("shape",))


def split(before: list[fx.Node], after: list[fx.Node], x: fx.Node, h: fx.Node) -> tuple[fx.Graph, fx.Graph]:
    """-> the graph images -> x, and the graph x -> (h, z)."""
    trunk, copies = fx.Graph(), {}
    for node in before:
        copies[node] = trunk.node_copy(node, copies.__getitem__)
    trunk.output(copies[x])
    tail = fx.Graph()
    copies = {x: tail.placeholder("x")}
    for node in before:
        if not set(node.users) & set(after):
            continue
        if node.op == "get_attr":
            copies[node] = tail.node_copy(node)
        elif node is not x:
            copies[node] = tail.call_method("size", (copies[x], 0))
    for node in after[:-1]:
        copies[node] = tail.node_copy(node, copies.__getitem__)
    tail.output((copies[h], fx.map_arg(after[-1].args[0], copies.__getitem__)))
    return trunk, tail


def names(graph: fx.Graph) -> set[str]:
    """The submodules, weights and buffers that a graph uses."""
    return {node.target for node in graph.nodes if node.op in ("call_module", "get_attr")}


def in_use(name: str, used: set[str]) -> bool:
    """Whether a graph that uses these needs the submodule: all of it, or some of its weights."""
    return any(part == name or part.startswith(f"{name}.") for part in used)


def weights(network: nn.Module, used: set[str]) -> set[str]:
    """The names of the weights and buffers in what is used. A tensor with several names has the first of them."""
    tensors, first = network.state_dict(keep_vars=True), {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return {first[id(tensor)] for name, tensor in tensors.items()
            if any(name == piece or name.startswith(f"{piece}.") for piece in used)}


def tried(network: nn.Module, function: Callable, training: bool = False):
    """The value of ``function()`` without gradients. Modes, buffers and random numbers stay as they are."""
    modes = {module: module.training for module in network.modules()}
    buffers = [(module._buffers, name, buffer, buffer.clone()) for module in modes
               for name, buffer in module._buffers.items() if buffer is not None]
    network.train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return function()
    finally:
        with torch.no_grad():
            for of_module, name, buffer, before in buffers:
                of_module[name] = buffer.copy_(before)
        for module, mode in modes.items():
            module.training = mode


def origin(error: Exception) -> str:
    """What an error says, and the line that raised it: for code that somebody else wrote."""
    frames = traceback.extract_tb(error.__traceback__)
    line = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}{line}"
