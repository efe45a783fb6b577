"""Files that are written whole or not at all."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path

from runtime.errors import UserError


def save(files: dict[Path, bytes]) -> None:
    """Write these files, each whole or not at all. If there is no room for all of them, none is written.

    Each file is written under a temporary name and synced. Only then are all of them renamed. A full disk, a missing
    permission or a killed process leaves the old files. UserError if the files cannot be written.
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
        raise UserError(f"{', '.join(map(str, files))} cannot be saved ({error.strerror or error}): the files saved "
                        "before are intact; fix this and start again (a training with --resume)") from error


def sync_folder(folder: Path) -> None:
    """Make renames in this folder survive a power failure. Windows cannot open folders and does nothing here."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
