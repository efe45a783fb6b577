"""Atomic writing: files are written whole or not at all."""

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from runtime.errors import UserError

WAY_OUT = "the files saved before are intact; fix this and start again (a training with --resume)"


def save(files: dict[Path, bytes], check: Callable[[Path], None] = lambda place: None, way_out: str = WAY_OUT) -> None:
    """Write these files, each whole or not at all. If there is no room for all of them, none is written.

    Each file is written under a temporary name, synced, and given to ``check``, which may raise an error. Only then are
    all of them renamed. A full disk, a missing permission or a killed process leaves the old files. UserError, which
    ends with ``way_out``, if the files cannot be written.
    """
    temporary = {temporary_name(path): path for path in files}
    try:
        for place, path in temporary.items():
            with open(place, "wb") as file:
                file.write(files[path])
                file.flush()
                os.fsync(file.fileno())
            check(place)
        for place, path in temporary.items():
            os.replace(place, path)
        for folder in {path.parent for path in files} if os.name == "posix" else ():  # Windows cannot open folders
            descriptor = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # some file systems cannot sync folders
                os.fsync(descriptor)  # so that the renames survive a power failure
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"{', '.join(map(str, files))} cannot be written ({error.strerror or error}): {way_out}"
                        ) from error
    finally:
        for place in temporary:
            with suppress(OSError):
                place.unlink()


def temporary_name(path: Path) -> Path:
    """last.pth -> last.tmp.pth: the ending tells what kind of file it is."""
    return path.with_name(f"{path.stem}.tmp{path.suffix}")


def as_json(value: object) -> bytes:
    """The content of a JSON file."""
    return (json.dumps(without_nan(value), indent=2) + "\n").encode()


def without_nan(value: object) -> object:
    """The value with None for NaN and infinity, also in lists and dictionaries: JSON has no such numbers."""
    if isinstance(value, dict):
        return {name: without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
