"""Load weights from a file into a network, and make a frozen teacher."""

from pathlib import Path

from torch import Tensor, nn

from runtime import processes
from runtime.checkpoints import load_checkpoint
from runtime.errors import UserError, first_words

from .official import load_official_state_dict
from .registry import create_model


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Copy trained weights into ``network``.

    path: a run folder (best.pth in it), a checkpoint of this project, or one of the authors' code.
    UserError if the file is missing, is not a checkpoint, or has another network or another number of classes.
    """
    path = Path(path)
    path = path / "best.pth" if path.is_dir() else path
    checkpoint = load_checkpoint(path)
    weights: dict[str, Tensor] = checkpoint.get("state_dict", checkpoint)
    try:
        if not isinstance(weights, dict):
            raise TypeError(f"its state_dict is a {type(weights).__name__}")
        if any(name.startswith("trunk.") for name in weights):
            network.load_state_dict(weights)
        else:
            load_official_state_dict(network, weights)
    except (ValueError, RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"{path} holds {content_in_words(checkpoint)}, which does not fit the requested "
                        f"{network.name}: {first_words(error)}") from error


def content_in_words(checkpoint: dict) -> str:
    """What a checkpoint contains, in words, for an error message."""
    flags = checkpoint.get("flags")
    if "format" not in checkpoint or not flags:
        return "another network"
    method = "" if flags["method"] == "" else f"{flags['method']} group of "
    return f"a {method}{flags['model']} trained on {flags['dataset']} with {len(checkpoint['classes'])} classes"


def load_teacher(name: str, num_classes: int, path: str | Path) -> nn.Module:
    """A teacher: the network ``name`` with the weights at ``path``. images [B, 3, H, W] -> logits [B, C].

    It is in evaluation mode, and its weights need no gradients. UserError as in ``load_weights``.
    """
    teacher = create_model(name, num_classes)
    processes.main_first(lambda: load_weights(teacher, path))
    return teacher.eval().requires_grad_(False)
