"""A CUDA device for machines without a GPU: its tensors have device, dtype, shape and strides, but no data.

    with fake_cuda() as gpu:
        ...                             # build a method and its Stepper on torch.device("cuda")
        with gpu.watch() as kernels:    # what makes the host wait raises HostWaits
            trainer.step(images, labels, 0.5)
    print(sum(kernels.values()))

PyTorch's FakeTensorMode knows the result of every operator without computing it. It raises if tensors of two devices
meet. This file adds what it lacks: it counts kernels, forbids what makes the host wait, checks the devices of indices,
and computes backward, because PyTorch's own engine asks the missing driver for a stream.

A kernel is a dispatched aten operator that is not a view, an allocation or a read. That is close to what a GPU
launches, not equal: a backward of a convolution counts as one. Private names of PyTorch are used. If one of them is
missing, ``fake_cuda`` raises, so every test that uses it fails and names it.
"""

from collections import Counter
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
NO_KERNEL = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default,
             aten.new_empty_strided.default, aten.detach.default, aten.lift_fresh.default, aten._unsafe_view.default}
READ, COPIES = aten._local_scalar_dense.default, (aten._to_copy.default, aten.copy_.default)


class HostWaits(Exception):
    """The host reads memory of the GPU, or copies its own there without non_blocking. Both wait for the GPU.

    A list as an index (x[:, [0, 2]]) is such a copy, in every use.
    """


class Gpu(TorchDispatchMode):
    """Sees every operator. Raises HostWaits while watched, and AssertionError if tensors of two devices meet."""

    kernels: Counter | None = None  # None: not watched
    may_copy = False  # memory of the host to the GPU
    current: torch.device | None = None  # of torch.cuda.set_device

    @contextmanager
    def watch(self, may_copy: bool = False):
        """-> the kernels that are launched meanwhile: name -> how many. ", number": the second operand is one."""
        self.kernels, self.may_copy = Counter(), may_copy
        yield self.kernels
        self.kernels = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace != "aten":  # such as a tensor's attribute
            return func(*args, **kwargs)
        with self:  # in inference mode, operators that consist of others come whole
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_gpu = [t.is_cuda for t in tensors]
        if func in COPIES:
            target = kwargs.get("device", args[0].device) if func is COPIES[0] else args[0].device
            to_host = torch.device(target).type == "cpu"
            non_blocking = kwargs.get("non_blocking", func is COPIES[1] and len(args) > 2 and args[2])
            waits = to_host if on_gpu[-1] else not (to_host or non_blocking or self.may_copy)
        else:  # the kernel gets a CPU tensor without dimensions as a number
            assert not any(on_gpu) or all(t.is_cuda or t.dim() == 0 for t in tensors), f"{func}: CPU and GPU tensors"
            waits = func is READ and on_gpu[0]
        if self.kernels is not None:
            if waits:
                raise HostWaits(f"{func} of a tensor {list(tensors[-1].shape)}")
            if launches(func, tensors, kwargs):
                second = args[1] if len(args) > 1 else None
                is_number = isinstance(second, int | float) or isinstance(second, Tensor) and not second.is_cuda
                self.kernels[func.name() + (", number" if is_number else "")] += 1
        if func is READ:  # what is read outside of ``watch``, for example at the end of an epoch
            return 1.0 if tensors[0].is_floating_point() else 1
        if func is aten._fused_sgd_.default:  # FakeTensorMode does not know it
            return None
        return func(*args, **kwargs)


def launches(func, tensors: list[Tensor], kwargs: dict) -> bool:
    """Whether an operator is a kernel on the GPU."""
    if func.is_view or func is READ or func in NO_KERNEL:
        return False
    made_there = torch.device(kwargs.get("device") or "cpu").type == "cuda"
    return made_there or any(t.is_cuda and t.numel() for t in tensors)


def backward(loss: Tensor) -> None:
    """loss.backward() for fake tensors: every node of the graph once, the latest first."""
    nodes, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo.extend(child for child, _ in node.next_functions)
    incoming = {node: [None] * len(node._input_metadata) for node in nodes}
    with torch.no_grad():
        incoming[loss.grad_fn][0] = torch.ones_like(loss)
        leaves = {node for node in nodes if node.name() == "torch::autograd::AccumulateGrad"}
        for node in sorted(nodes - leaves, key=lambda node: -node._sequence_nr()):
            send(node, incoming)
        for leaf in leaves:
            accumulate(leaf.variable, *incoming[leaf])


def send(node, incoming: dict) -> None:
    """Compute a node's gradients, and add each to what its child has received."""
    gradients = incoming.pop(node)
    if all(g is None for g in gradients):
        return
    results = getattr(node, "apply", node)(*gradients)  # apply: of a torch.autograd.Function
    results = results if isinstance(results, tuple) else (results,)
    if len(results) > len(node.next_functions):  # such a function also returns None for arguments that are no tensors
        results = [g for g in results if g is not None]
    for (child, i), g in zip(node.next_functions, results, strict=True):
        if child is None or g is None:
            continue
        meta = child._input_metadata[i]
        assert g.device == meta.device, f"{node.name()}: gradient on {g.device} of a tensor on {meta.device}"
        g = g if g.shape == tuple(meta.shape) else g.sum_to_size(*meta.shape)
        g = g.to(meta.dtype)
        before = incoming[child][i]
        incoming[child][i] = g if before is None else before + g


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """parameter.grad, in the parameter's memory format, as PyTorch makes it."""
    if parameter.grad is not None:
        parameter.grad += gradient
    elif gradient.stride() == parameter.stride():
        parameter.grad = gradient
    else:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)


@contextmanager
def fake_cuda():
    """-> the Gpu. All tensors that are made meanwhile are fake, on the CPU, too."""
    gpu = Gpu()
    replaced = {
        "torch.Tensor.backward": backward,
        "torch.utils.weakref.getweakrefs": lambda t: [],  # Module.to refuses tensors with weak references
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,  # else autocast and GradScaler are off
        "torch.cuda.set_device": lambda device: setattr(gpu, "current", device),
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
    }
    with ExitStack() as stack:
        for name, value in replaced.items():
            stack.enter_context(mock.patch(name, value))  # AttributeError if PyTorch has no such name
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(gpu)
