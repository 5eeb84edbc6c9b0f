"""Progress bars, which only a terminal shows."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T] | None = None, total: int | None = None, desc: str = "", unit: str = "it"
) -> tqdm:
    """A progress bar on a terminal; silent elsewhere, so that logs stay readable."""
    return tqdm(items, total=total, desc=desc, unit=unit, disable=None, leave=False)
