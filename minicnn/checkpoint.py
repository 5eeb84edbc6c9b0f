"""Arrays and what is known about them in one safetensors file, proof against damage.

The file's metadata holds one JSON document and a SHA-256 over it and all arrays, because the
format itself has no checksum: a flipped byte is found at loading, not in the masks. safetensors is
imported on first use: the course runs in a browser without it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.backend import Array, array_module, to_host
from minicnn.files import atomic_write
from minicnn.layers import Layer


class CheckpointError(ValueError):
    """A checkpoint that can't be used: the message names the file and what was expected."""


def save(path: str | Path, arrays: dict[str, Array], about: dict[str, Any]) -> None:
    """Write `arrays` and the JSON document `about`; the file appears whole or not at all."""
    from safetensors.numpy import save as serialise

    host = {name: np.asarray(to_host(array), order="C") for name, array in arrays.items()}
    document = json.dumps(about, sort_keys=True)
    # One metadata key: safetensors writes several in no fixed order, and files should be equal.
    envelope = json.dumps({"about": document, "sha256": _digest(host, document)}, sort_keys=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(serialise(host, metadata={"minicnn": envelope}))


def load(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the document of a file that `save` wrote, else CheckpointError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            envelope = json.loads((file.metadata() or {})["minicnn"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            document, digest = envelope["about"], envelope["sha256"]
            about = json.loads(document)
    except FileNotFoundError:  # what safetensors says of a file that may not be read, too
        why = "it can't be read" if Path(path).exists() else "there is no such checkpoint"
        raise CheckpointError(f"{path}: {why}") from None
    except KeyError:
        raise CheckpointError(f"{path}: expected a checkpoint that minicnn wrote") from None
    except (SafetensorError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: expected a whole safetensors checkpoint of minicnn ({error})"
        ) from error
    if _digest(arrays, document) != digest:
        raise CheckpointError(f"{path}: the checkpoint is damaged, its checksum does not match")
    return arrays, about


def _digest(arrays: dict[str, np.ndarray], document: str) -> str:
    digest = hashlib.sha256(document.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def net_arrays(net: Layer) -> dict[str, Array]:
    """Everything that makes a net what it is: its parameters and its running statistics."""
    return {**net.parameters(), **net.buffers()}


def load_net(net: Layer, arrays: dict[str, np.ndarray], path: str | Path) -> None:
    """Put `arrays`, read from `path`, into `net`; CheckpointError if they are another net's."""
    own = net_arrays(net)
    wrong = sorted(own.keys() ^ arrays.keys()) or sorted(
        name for name, array in own.items() if array.shape != arrays[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"{path}: the weights are of another architecture ({wrong[0]} does not fit)"
        )
    for name, array in own.items():
        array[...] = array_module(array).asarray(arrays[name], array.dtype)
