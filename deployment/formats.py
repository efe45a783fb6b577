"""The network that is deployed, in one file: written, checked against the run, loaded back.

    python evaluate.py CIFAR10/OKDDip/resnet32 --export leader.onnx

    .pth           {'state_dict', 'model', 'classes', 'mean', 'std'}; torch.load(weights_only=True) opens it
    .safetensors   the same weights; what is not a tensor is in the file's metadata
    .onnx          for onnxruntime and others; the same metadata in metadata_props
    .pt2           torch.export's; the same metadata in its extra file metadata.json

A network takes images [B, 3, H, W], any B, their pixels in 0..1 normalised by mean and std, and gives logits [B, C].
In metadata of strings, lists are JSON. ``size``, the images' height and width, is in it only where it is not the usual
one: 224 for resnet18/34/50, 32 for the others.
"""

import importlib
import inspect
import io
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from checkpoint import load_checkpoint, sync_folder
from errors import UserError
from torch import Tensor, nn

from models import create_model
from models.imagenet import NETWORKS as LARGE

TOLERANCE = 1e-4, 5e-6  # largest difference of two logits: absolute, or in relation to the largest logit


def usual_size(model: str) -> int:
    """Height and width of the images that a network of ``models.NETWORKS`` is made for."""
    return 224 if model in LARGE else 32


def about(model: str, classes: list[str], mean: Iterable[float], std: Iterable[float], size: int) -> dict:
    """What a file says of its network."""
    metadata = {"model": model, "classes": list(classes), "mean": list(mean), "std": list(std)}
    return metadata | ({} if size == usual_size(model) else {"size": size})


def need(*packages: str) -> list[ModuleType]:
    """Import what training does without; UserError that says how to install it."""
    try:
        return [importlib.import_module(package) for package in packages]
    except ImportError as error:
        names = " ".join(package.partition(".")[0] for package in packages)
        raise UserError(f"this kind of file needs packages that are missing here ({error}): pip install {names}"
                        ) from error


# --- formats ----------------------------------------------------------------------------------------------------------


def as_strings(metadata: dict) -> dict[str, str]:
    """Metadata for formats that know strings alone: lists as JSON."""
    return {name: value if name == "model" else json.dumps(value) for name, value in metadata.items()}


def from_strings(strings: dict[str, str]) -> dict:
    """What ``as_strings`` was given; other entries are not ours."""
    return {name: value if name == "model" else json.loads(value) for name, value in strings.items()
            if name in ("model", "classes", "mean", "std", "size")}


def rebuild(weights: dict[str, Tensor], metadata: dict) -> nn.Module:
    """The network that the weights belong to."""
    network = create_model(metadata["model"], len(metadata["classes"]))
    network.load_state_dict(weights)
    return network


class Foreign(nn.Module):
    """A network that something else computes, on the CPU: images [B, 3, H, W] -> logits [B, C]."""

    def __init__(self, compute: Callable[[Tensor], Tensor]):
        super().__init__()
        self.compute = compute

    def forward(self, images: Tensor) -> Tensor:
        return self.compute(images.cpu().contiguous()).to(images.device)


def write_pth(network: nn.Module, metadata: dict) -> bytes:
    """A dictionary of the weights and the metadata."""
    buffer = io.BytesIO()
    torch.save({"state_dict": network.state_dict(), **metadata}, buffer)
    return buffer.getvalue()


def read_pth(path: Path) -> tuple[nn.Module, dict]:
    """-> network, metadata of a .pth file."""
    content = load_checkpoint(path)
    weights = content.pop("state_dict")
    return rebuild(weights, content), content


def write_safetensors(network: nn.Module, metadata: dict) -> bytes:
    """The weights, and the metadata as strings."""
    (library,) = need("safetensors.torch")
    return library.save(network.state_dict(), as_strings(metadata))


def read_safetensors(path: Path) -> tuple[nn.Module, dict]:
    """-> network, metadata of a .safetensors file."""
    (library,) = need("safetensors")
    with library.safe_open(path, "pt") as file:
        metadata = from_strings(file.metadata())
        return rebuild({name: file.get_tensor(name) for name in file.keys()}, metadata), metadata


def example(metadata: dict) -> tuple[Tensor, dict]:
    """What a network is traced with: two images, and that their number may be any."""
    size = metadata.get("size", usual_size(metadata["model"]))
    return torch.zeros(2, 3, size, size), {"images": {0: torch.export.Dim("batch", min=1)}}


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn of what is not in our hands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def write_onnx(network: nn.Module, metadata: dict) -> bytes:
    """A graph from "images" to "logits", for any batch size."""
    need("onnx", "onnxscript", "onnxruntime")
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        raise UserError(f".onnx files need a newer torch than {torch.__version__}: pip install --upgrade torch")
    images, shapes = example(metadata)
    with quiet():
        program = torch.onnx.export(network, (images,), dynamo=True, dynamic_shapes=shapes, input_names=["images"],
                                    output_names=["logits"], verbose=False)
    program.model.metadata_props.update(as_strings(metadata))
    content = program.model_proto
    graph = content.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]  # where in this machine's files each of them comes from
    return content.SerializeToString()


def read_onnx(path: Path) -> tuple[nn.Module, dict]:
    """-> network, metadata of an .onnx file; onnxruntime computes it."""
    (library,) = need("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = library.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def compute(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return Foreign(compute), from_strings(session.get_modelmeta().custom_metadata_map)


def write_pt2(network: nn.Module, metadata: dict) -> bytes:
    """torch.export's program, for any batch size."""
    images, shapes = example(metadata)
    buffer = io.BytesIO()
    with quiet():
        program = torch.export.export(network, (images,), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # the paths of this machine's files
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    return buffer.getvalue()


def read_pt2(path: Path) -> tuple[nn.Module, dict]:
    """-> network, metadata of a .pt2 file."""
    extra = {"metadata.json": ""}
    with quiet():
        network = torch.export.load(path, extra_files=extra).module()
    return Foreign(lambda images: network(images)), json.loads(extra["metadata.json"])


class Format(NamedTuple):
    """write(network, metadata) -> the file's content; read(path) -> network, metadata; packages that writing needs."""

    write: Callable[[nn.Module, dict], bytes]
    read: Callable[[Path], tuple[nn.Module, dict]]
    packages: tuple[str, ...] = ()


FORMATS = {
    ".pth": Format(write_pth, read_pth),
    ".safetensors": Format(write_safetensors, read_safetensors, ("safetensors",)),
    ".onnx": Format(write_onnx, read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    ".pt2": Format(write_pt2, read_pt2),
}


# --- reading and writing ----------------------------------------------------------------------------------------------


def load(path: str | Path) -> nn.Module:
    """The network of an exported file, in evaluation mode: images float32 [B, 3, size, size] -> logits [B, C].

    It has what the file says besides: .name, .classes, .mean, .std, .size. UserError where the file is missing, damaged
    or not an exported one, or where a package is missing that opens it. .pt2 files are opened by torch.export.load,
    which promises nothing about files of strangers; the others run no code.
    """
    path = Path(path)
    kind = format_of(path)
    if not path.is_file():
        raise UserError(f"there is no file at {path}")
    try:
        network, metadata = kind.read(path)
        network.name, network.classes = metadata["model"], metadata["classes"]
        network.mean, network.std = check_normalisation(metadata["mean"], metadata["std"])
        network.size = metadata.get("size", usual_size(network.name))
        if network.size not in (32, 224):
            raise ValueError(f"images of size {network.size!r}")
    except UserError:
        raise
    except Exception as error:  # each library raises what it likes
        reason = f"{type(error).__name__}, {' '.join(str(error).split())[:200]}"
        raise UserError(f"{path} is not a file that --export has written with these versions, or is damaged: {reason}"
                        ) from error
    return network.eval()


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """Both as they are; ValueError where they are not three numbers each that pixels can be normalised by."""
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, [*mean, *std])) or min(std) <= 0:
        raise ValueError(f"mean {mean!r} and std {std!r} are not three numbers each, std above 0")
    return mean, std


def format_of(path: Path) -> Format:
    """UserError where the ending is none of FORMATS."""
    if path.suffix not in FORMATS:
        raise UserError(f"{path} has none of the endings {', '.join(FORMATS)}, which say what kind of file it is")
    return FORMATS[path.suffix]


def check_target(path: Path, overwrite: bool) -> None:
    """UserError where nothing can be written there, before any work is done."""
    need(*format_of(path).packages)
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a folder: make it first, or export to another place")
    if path.is_dir():
        raise UserError(f"{path} is a folder: take another name")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already: take another name, or replace it with --overwrite")


def plain(network: nn.Module, classes: int) -> nn.Module:
    """A copy in evaluation mode whose weights are contiguous: in training they are in channels_last."""
    copy = create_model(network.name, classes)
    copy.load_state_dict(network.state_dict())
    return copy.eval()


@torch.no_grad()
def difference(a: Callable[[Tensor], Tensor], b: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """-> [2]: the largest difference of two networks' logits, and the largest logit of the second."""
    found = [(a(images), b(images)) for images in batches]
    return torch.stack([torch.stack([(x - y).abs().max(), y.abs().max()]) for x, y in found]).amax(0)


def export(path: Path, network: nn.Module, metadata: dict, logits: Callable[[Tensor], Tensor],
           batches: Iterable[Tensor]) -> float:
    """Write ``network``, a plain one, to ``path``; -> the largest difference that was found.

    It is written beside its place, loaded back, compared on ``batches`` [B, 3, H, W] with ``logits``, what the run
    computes, and renamed only where they agree. UserError, and no file, where they do not or it cannot be written.
    """
    content = format_of(path).write(plain(network, len(metadata["classes"])), metadata)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")  # load looks at the ending
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        worst, scale = difference(load(temporary), logits, batches).tolist()
        absolute, relative = TOLERANCE
        if not worst <= max(absolute, relative * scale):  # a NaN is no agreement
            raise UserError(f"{path} is not written: its logits differ by {worst:.3g} from the run's, which reach "
                            f"{scale:.3g}; please report this")
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}): export to another place, or make "
                        "room there") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return worst
