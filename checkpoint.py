"""Checkpoint files: written whole or not at all, read without running any code of theirs, checked by a digest."""

import hashlib
import io
import json
import os
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from errors import UserError
from models import load_official_state_dict

# --- writing ----------------------------------------------------------------------------------------------------------


def save(files: dict[Path, bytes]) -> None:
    """Write these files, each whole or not at all, and none where there is no room for all of them.

    All are written beside their places and synced before the first is renamed, so that a full disk, a lost permission
    or a killed process leaves what was there before. UserError where they cannot be written.
    """
    temporary = {path.with_name(path.name + ".tmp"): path for path in files}
    try:
        for place, path in temporary.items():
            with open(place, "wb") as file:
                file.write(files[path])
                file.flush()
                os.fsync(file.fileno())
        for place, path in temporary.items():
            os.replace(place, path)
        for folder in {path.parent for path in files}:
            sync_folder(folder)
    except OSError as error:
        for place in temporary:
            with suppress(OSError):
                place.unlink()
        raise UserError(f"{', '.join(map(str, files))} cannot be saved ({error.strerror or error}): what was saved "
                        "before is intact; mend this and start again, a training with --resume") from error


def sync_folder(folder: Path) -> None:
    """Make renames in it outlast a power failure, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def as_json(value: object) -> bytes:
    """A JSON file's content."""
    return (json.dumps(value, indent=2) + "\n").encode()


def serialise(content: dict) -> bytes:
    """A checkpoint of tensors, numbers, strings, lists and dictionaries alone, with their digest."""
    buffer = io.BytesIO()
    torch.save({**content, "digest": digest(content)}, buffer)
    return buffer.getvalue()


def digest(content: object) -> str:
    """SHA-256 of nested dictionaries, lists, numbers, strings and tensors: values, types, shapes and order count.

    torch.load does not check the sums that its files carry.
    """
    sha = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            sha.update(f"{value.dtype}{list(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(value, dict | list | tuple):
            sha.update(f"{len(value)}:".encode())
            for part in value.items() if isinstance(value, dict) else value:
                add(part)
        else:
            sha.update(f"{value!r};".encode())

    add(content)
    return sha.hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def load_checkpoint(path: Path) -> dict:
    """A checkpoint's dictionary, without running any code from the file; UserError where it is not one, or damaged."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint at {path}") from error
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch.load raises whatever zip files, pickles and archives raise
        raise UserError(f"{path} is not a checkpoint that can be loaded safely: it is damaged, or holds "
                        f"more than tensors and plain values ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(checkpoint).__name__} instead of a dictionary")
    recorded = checkpoint.pop("digest", None)
    if (recorded or "format" in checkpoint) and recorded != digest(checkpoint):
        raise UserError(f"{path} is damaged: what it holds is not what was saved (its digest differs)")
    return checkpoint


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Weights of a finished network: a run folder (its best.pth), or a file of ours or of the authors' code.

    UserError where the file is missing, is not a checkpoint, or belongs to another network or class count.
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
        reason = " ".join(str(error).split())
        raise UserError(f"{path} holds {whose(checkpoint)}, which does not fit the {network.name} that was asked for: "
                        f"{reason[:200]}") from error


def whose(checkpoint: dict) -> str:
    """What a checkpoint says that it holds."""
    flags = checkpoint.get("flags")
    if "format" not in checkpoint or not flags:
        return "another network"
    method = "" if flags["method"] == "" else f"{flags['method']} group of "
    return f"a {method}{flags['model']} trained on {flags['dataset']} with {len(checkpoint['classes'])} classes"


# --- random numbers ---------------------------------------------------------------------------------------------------


def random_state(device: torch.device) -> dict:
    """State of every generator that a training step may draw from (the loader's follow from seed and epoch)."""
    name, keys, *rest = np.random.get_state()
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": [name, keys.tolist(), *rest]}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: dict, device: torch.device) -> None:
    """Go back to what ``random_state`` returned."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
