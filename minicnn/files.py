"""Writing a file so that readers see it whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there when the block ends without an error.

    The bytes are on the disk (fsync) before the name changes (rename), so a reader, a power cut
    or a full disk never meets half a file. On an error the temporary file is removed and `path`
    keeps what it held. The temporary name ends like `path`: writers that go by suffix work.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's umask; mkstemp ignores it, and a result should be as readable as any file."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
