"""Export the deployed network: write the file, load it again, compare it with the run, and only then rename it."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

import data_loader
from deployment import formats
from deployment.reading import SavedModel
from models import Network, in_file, plain_network
from models.architecture import with_versions
from runtime.errors import UserError, first_words
from runtime.files import save
from training.folder import belongs_to_run

TOLERANCE = 1e-4, 5e-6  # largest allowed difference of two logits: absolute, or relative to the largest logit


def check_target(path: Path, overwrite: bool) -> None:
    """UserError if ``path`` is of a run, of no format or there already. Called before any work is done."""
    if belongs_to_run(path):
        raise UserError(f"{path} belongs to a run, which would be lost: export under another name")
    formats.format_of(path)
    if path.suffix == ".onnx":
        formats.check_onnx()
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already: choose another name, or replace it with --overwrite")


def export_model(saved: SavedModel, path: Path, branch: int | None = None) -> dict:
    """Write the deployed network to ``path``. -> a description, as ``evaluate.py --export --json`` prints it.

    branch: the student to export; None: the leader. UserError if the group has no leader, or the model no weights.
    """
    output, network = saved.deployed_network(branch)
    name = Path(network.name).name if in_file(network.name) else network.name  # without its folder on this machine
    metadata = formats.describe(name, saved.classes, saved.mean, saved.std, saved.size)
    largest = write_checked(path, network, metadata, lambda images: saved.logits(images, output), check_batches(saved))
    return {"file": str(path), "bytes": path.stat().st_size, "of": str(saved.path),
            "network": saved.method.outputs[output], "model": network.name, "largest_difference": largest}


def as_text(result: dict) -> str:
    """The result of ``export_model`` as text."""
    return (f"{result['file']}: {result['network']} of {result['of']}, {result['model']}, {result['bytes']:,} bytes; "
            f"logits on random images differ from the run's by at most {result['largest_difference']:.1e}")


def check_batches(saved: SavedModel) -> list[Tensor]:
    """Random images to compare on: a batch of five, and one image alone."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(256, (5, saved.size, saved.size, 3), dtype=torch.uint8, generator=generator)
    images = data_loader.Normalise(saved.mean, saved.std, torch.device("cpu"))(random)
    return [images, images[:1]]


def write_checked(path: Path, network: nn.Module, metadata: dict, logits: Callable[[Tensor], Tensor],
                  batches: Iterable[Tensor]) -> float:
    """Write a plain network to ``path``. -> the largest difference of its logits from ``logits``, those of the run.

    Before the file gets its name, it is loaded again and compared on ``batches`` [B, 3, H, W]. UserError, and no file,
    if the logits do not agree, or if the file cannot be written.
    """
    copy = plain_network(network.name, len(metadata["classes"]))  # its weights are contiguous, not channels_last
    own = network.network if isinstance(network, formats.Named) else network
    copy.load_state_dict(with_versions(own.own_state_dict() if isinstance(own, Network) else own.state_dict(), copy))
    named = network.name if in_file(network.name) else None
    differences = []

    def compare(place: Path) -> None:
        largest, scale = difference(formats.load(place, named), logits, batches).tolist()
        absolute, relative = TOLERANCE
        if not largest <= max(absolute, relative * scale):  # also refuses a NaN
            raise UserError(f"{path} is not written: its logits differ by {largest:.3g} from the run's, whose largest "
                            f"is {scale:.3g}; please report this")
        differences.append(largest)

    write, _ = formats.format_of(path)
    try:
        copy.eval()
        content = write(copy, metadata)
    except UserError:
        raise
    except Exception as error:  # of the exporters, for networks that they do not support
        raise UserError(f"this network cannot be written to a {path.suffix} file ({type(error).__name__}, "
                        f"{first_words(error)}): export a .pth file") from error
    save({path: content}, compare, "export to another place, or make room there")
    return differences[0]


@torch.no_grad()
def difference(a: Callable[[Tensor], Tensor], b: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> Tensor:
    """-> [2]: the largest difference between the logits of two networks, and the largest logit of the second."""
    logits = [(a(images), b(images)) for images in batches]
    return torch.stack([torch.stack([(x - y).abs().max(), y.abs().max()]) for x, y in logits]).amax(0)
