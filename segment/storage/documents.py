"""JSON files that people can read."""

import json
from pathlib import Path
from typing import Any

from minicnn.files import write_text
from segment.errors import InputError


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file that people can read, whole or not at all."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: expected this file of a training run") from None
    except ValueError as error:
        raise InputError(f"{path}: expected JSON ({error})") from None
