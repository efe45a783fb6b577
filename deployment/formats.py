"""The file formats of one deployed network: writing and reading.

    .pth           {'state_dict', 'model', 'classes', 'mean', 'std', 'size', 'digest'}; opened by
                   torch.load(weights_only=True)
    .safetensors   the same weights; the other entries are in the file's metadata
    .onnx          for onnxruntime and others; the same metadata in metadata_props
    .pt2           written by torch.export; the same metadata in its extra file metadata.json, and the version of torch
                   that wrote it: PyTorch does not promise that another version can read the file

A network takes images [B, 3, H, W], with any B, and gives logits [B, C]. The pixels are in 0..1, normalised by mean and
std. If metadata can only be strings, lists are JSON. ``size`` is the height and width of the images. Older files
have it only if it is not the usual one: 224 for resnet18/34/50, 32 for the others.

All but .pt2 have a digest, which is checked before the file is used: a damaged file is refused. Files of version 1.0.0
have none.
"""

import hashlib
import importlib
import inspect
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from loading.augmentation import Normalise, preparation
from loading.images import upright_rgb
from models import NETWORKS, Network, in_file, plain_network
from models.architecture import with_versions
from runtime.checkpoints import load_checkpoint, serialise
from runtime.errors import UserError, first_words


def describe(model: str, classes: list[str], mean: Iterable[float], std: Iterable[float], size: int) -> dict:
    """The metadata of a file. model: the network's name in ``models.NETWORKS``."""
    return {"model": model, "classes": list(classes), "mean": list(mean), "std": list(std), "size": size}


def need(*packages: str) -> list[ModuleType]:
    """Import packages that training does not need. UserError with the command that installs them if one is missing."""
    try:
        return [importlib.import_module(package) for package in packages]
    except ImportError as error:
        names = " ".join(package.partition(".")[0] for package in packages)
        raise UserError(f"this kind of file needs packages that are not installed ({error}): pip install {names}"
                        ) from error


# --- formats. write_...(network, metadata) -> the content of a file; read_...(path, model) -> network, metadata -------


def as_strings(metadata: dict) -> dict[str, str]:
    """Metadata for formats that allow only strings: lists as JSON."""
    return {name: value if name == "model" else json.dumps(value) for name, value in metadata.items()}


def from_strings(strings: dict[str, str]) -> dict:
    """The inverse of ``as_strings``. Entries that are not ours are left out."""
    return {name: value if name == "model" else json.loads(value) for name, value in strings.items()
            if name in ("model", "classes", "mean", "std", "size")}


# The digest of a file in its metadata, in JSON and in the encoding of .onnx files.
DIGEST = re.compile(rb"digest[^0-9a-f]{1,6}([0-9a-f]{64})")
NO_DIGEST = {"digest": "0" * 64}


def with_digest(content: bytes) -> bytes:
    """The file with its digest in the metadata: its SHA-256, computed with zeros in place of the digest."""
    start, end = DIGEST.search(content).span(1)
    sha = hashlib.sha256(content[:start] + b"0" * 64 + content[end:])
    return content[:start] + sha.hexdigest().encode() + content[end:]


def check_digest(path: Path) -> None:
    """ValueError if the file does not match its digest. Files without a digest pass."""
    content = path.read_bytes()
    if DIGEST.search(content) and with_digest(content) != content:
        raise ValueError("its digest differs")


def rebuild(weights: dict[str, Tensor], metadata: dict, model: str | None = None) -> nn.Module:
    """The network that metadata describe, with these weights. model: PATH/FILE.py:NAME of a network from a file.

    UserError if the network is from a Python file and ``model`` is None: only files that the user names are imported.
    """
    name = model or metadata["model"]
    if in_file(name) and not model:
        raise UserError(f"these are the weights of {name}, which a Python file makes: name the file to import, "
                        "PATH/FILE.py:NAME, with --model or --T_model, or with definition= of torch.hub.load")
    if model and not in_file(metadata["model"]):
        raise UserError(f"these are the weights of {metadata['model']}: leave out {model}")
    try:
        network = plain_network(name, len(metadata["classes"]))
    except ValueError as error:
        raise UserError(str(error)) from error
    network.load_state_dict(with_versions(weights, network))
    return network


class ExternalModel(nn.Module):
    """A network that another library computes, on the CPU: images [B, 3, H, W] -> logits [B, C]."""

    def __init__(self, compute: Callable[[Tensor], Tensor]):
        super().__init__()
        self.compute = compute

    def forward(self, images: Tensor) -> Tensor:
        return self.compute(images.cpu().contiguous()).to(images.device)


def write_pth(network: nn.Module, metadata: dict) -> bytes:
    """A dictionary of the weights and the metadata, with a digest."""
    return serialise({"state_dict": network.state_dict(), **metadata})


def read_pth(path: Path, model: str | None = None) -> tuple[nn.Module, dict]:
    content = load_checkpoint(path)
    weights = content.pop("state_dict")
    return rebuild(weights, content, model), content


def write_safetensors(network: nn.Module, metadata: dict) -> bytes:
    """The weights, and the metadata as strings."""
    weights = {name: value.clone() for name, value in network.state_dict().items()}  # it refuses tied weights
    return with_digest(safetensors.torch.save(weights, as_strings(metadata | NO_DIGEST)))


def read_safetensors(path: Path, model: str | None = None) -> tuple[nn.Module, dict]:
    check_digest(path)
    with safetensors.safe_open(path, "pt") as file:
        metadata = from_strings(file.metadata())
        return rebuild({name: file.get_tensor(name) for name in file.keys()}, metadata, model), metadata


def example(metadata: dict) -> tuple[Tensor, tuple]:
    """Inputs that a network is traced with: two images, and the rule that any number of images is allowed."""
    size = metadata["size"]
    return torch.zeros(2, 3, size, size), ({0: torch.export.Dim("batch", min=1)},)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' warnings. They are about code that is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def check_onnx() -> None:
    """UserError if no .onnx file can be written here. The version is checked first: an old torch needs no packages."""
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        raise UserError(f".onnx files need torch 2.5 or newer, and this is {torch.__version__}: "
                        "pip install --upgrade torch, or export a .safetensors file")
    need("onnx", "onnxscript", "onnxruntime")


def write_onnx(network: nn.Module, metadata: dict) -> bytes:
    """A graph from "images" to "logits", for any batch size."""
    check_onnx()
    images, shapes = example(metadata)
    with quiet():
        program = torch.onnx.export(network, (images,), dynamo=True, dynamic_shapes=shapes, input_names=["images"],
                                    output_names=["logits"], verbose=False)
    program.model.metadata_props.update(as_strings(metadata | NO_DIGEST))
    content = program.model_proto
    graph = content.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]  # the exporter records paths of this machine's files
    return with_digest(content.SerializeToString())


def read_onnx(path: Path, model: str | None = None) -> tuple[nn.Module, dict]:
    (library,) = need("onnxruntime")
    check_digest(path)
    options = library.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = library.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def compute(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return ExternalModel(compute), from_strings(session.get_modelmeta().custom_metadata_map)


def write_pt2(network: nn.Module, metadata: dict) -> bytes:
    """A program of torch.export, for any batch size. Its metadata name the version of torch that wrote it."""
    images, shapes = example(metadata)
    buffer, metadata = io.BytesIO(), metadata | {"torch": str(torch.__version__)}
    with quiet():
        program = torch.export.export(network, (images,), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it contains paths of this machine's files
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
    return buffer.getvalue()


def read_pt2(path: Path, model: str | None = None) -> tuple[nn.Module, dict]:
    """UserError names both versions of torch if they may be the cause."""
    extra = {"metadata.json": ""}
    try:
        with quiet():
            network = torch.export.load(path, extra_files=extra).module()
    except Exception as error:  # torch.export has no exceptions of its own
        written = torch_of_pt2(path)
        if written in (None, torch.__version__):
            raise
        raise UserError(f"{path} was written by torch {written}, and this is {torch.__version__}, which does not read "
                        f"it ({type(error).__name__}, {first_words(error)}): use that version, or export the run to "
                        "a .safetensors or .onnx file") from error
    return ExternalModel(lambda images: network(images)), json.loads(extra["metadata.json"])


def torch_of_pt2(path: Path) -> str | None:
    """The version of torch that wrote a .pt2 file. None if the file is damaged. Older files do not name it."""
    try:
        with zipfile.ZipFile(path) as file:
            (name,) = (name for name in file.namelist() if name.endswith("/metadata.json"))
            return json.loads(file.read(name)).get("torch", "of an unknown version")
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile):
        return None


FORMATS = {  # ending -> write, read
    ".pth": (write_pth, read_pth),
    ".safetensors": (write_safetensors, read_safetensors),
    ".onnx": (write_onnx, read_onnx),
    ".pt2": (write_pt2, read_pt2),
}


def format_of(path: Path) -> tuple[Callable[..., bytes], Callable[..., tuple[nn.Module, dict]]]:
    """The format of a file by its ending: write, read. UserError if there is no such format."""
    if path.suffix not in FORMATS:
        raise UserError(f"{path} must end in one of {', '.join(FORMATS)}: the ending chooses the kind of file")
    return FORMATS[path.suffix]


# --- loading ----------------------------------------------------------------------------------------------------------


METADATA = ("name", "classes", "mean", "std", "size")  # attributes of a network that ``load`` returns


class Named(nn.Module):
    """Wraps a network that already has attributes with the names of the metadata."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def preprocess(size: int, mean: Sequence[float], std: Sequence[float], image: Image.Image) -> Tensor:
    """A Pillow image of any size and mode -> float32 [1, 3, size, size], prepared as test images are."""
    pixels = np.array(upright_rgb(image.copy(), image))
    return Normalise(mean, std, torch.device("cpu"))(preparation(size)(pixels))


def load(path: str | Path, model: str | None = None) -> nn.Module:
    """The network of an exported file, in evaluation mode: images float32 [B, 3, size, size] -> logits [B, C].

    It has the metadata of the file, .name, .classes, .mean, .std and .size, and .preprocess, which prepares a Pillow
    image: -> float32 [1, 3, size, size]. A network from elsewhere that has such attributes itself is in .network.

    model: PATH/FILE.py:NAME, for a network that is defined in a Python file, which is imported. .pt2 files are opened
    by torch.export.load, which is not safe for untrusted files. Reading the other formats runs no code from the file.
    UserError if the file is missing, damaged or was not exported, or if a package that opens it is missing.
    """
    path = Path(path)
    _, read = format_of(path)
    if not path.is_file():
        raise UserError(f"there is no file at {path}")
    try:
        network, metadata = read(path, model)
        if not isinstance(network, Network) and any(hasattr(network, name) for name in (*METADATA, "preprocess")):
            network = Named(network)
        network.name, network.classes = metadata["model"], metadata["classes"]
        network.mean, network.std = metadata["mean"], metadata["std"]
        network.size = metadata["size"] if "size" in metadata else NETWORKS[network.name].image_size
        network.preprocess = partial(preprocess, network.size, network.mean, network.std)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:  # each library has exceptions of its own
        reason = f"{type(error).__name__}, {first_words(error)}"
        raise UserError(f"{path} is damaged, or is not a file that --export wrote with these versions: {reason}"
                        ) from error
    network.eval()
    return network
