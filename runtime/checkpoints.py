"""Checkpoint files: dictionaries of tensors and plain values, with a digest. Reading one runs no code from it."""

import copy
import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor

from runtime.errors import UserError


def serialise(content: dict) -> bytes:
    """The bytes of a checkpoint: tensors, numbers, strings, lists and dictionaries, and their digest."""
    content, buffer = on_cpu(content), io.BytesIO()
    torch.save({**content, "digest": digest(content)}, buffer)
    return buffer.getvalue()


def on_cpu(value: object) -> object:
    """The same with every tensor on the CPU, so that a file from a GPU can be loaded without one."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        moved = copy.copy(value)  # keeps the metadata of a state_dict
        for key, part in value.items():  # not update: a Counter would count them
            moved[key] = on_cpu(part)
        return moved
    return type(value)(map(on_cpu, value)) if isinstance(value, list | tuple) else value


def digest(content: object) -> str:
    """SHA-256 of nested dictionaries, lists, numbers, strings and tensors. Values, types, shapes and order count.

    Needed because torch.load does not verify the checksums in its files.
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


def load_checkpoint(path: Path) -> dict:
    """The dictionary in a checkpoint. No code from the file runs. UserError if it is damaged or not a checkpoint."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint at {path}: name a run's folder, or a checkpoint file") from error
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # zip, pickle and tar each raise exceptions of their own
        raise UserError(f"{path} is not a checkpoint that can be loaded safely: it is damaged, or contains "
                        f"more than tensors and plain values ({type(error).__name__}); name another file") from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} is not a checkpoint: it contains a {type(checkpoint).__name__}, not a dictionary")
    recorded = checkpoint.pop("digest", None)
    if (recorded or "format" in checkpoint) and recorded != digest(checkpoint):
        raise UserError(f"{path} is damaged: its content is not what was saved (the digest differs)")
    return checkpoint
