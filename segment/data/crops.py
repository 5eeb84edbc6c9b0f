"""Where training looks: squares at random places of the pictures it may learn from."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from segment.data.augment import lit, zoomed, zoomed_size
from segment.data.labels import IGNORE
from segment.data.tiles import TILE, TileStore

CROP = 128  # pixels: a batch shows more places as eight of these than as two tiles


def _grid(height: int, width: int) -> Iterator[tuple[int, int]]:
    """The corners of the crops side by side that lie in an area by at least a half."""
    last = CROP // 2 - 1
    return product(range(0, height - last, CROP), range(0, width - last, CROP))


class Crops:
    """Cells of a grid over the training tiles and what no tile covers; crops are cut near them."""

    def __init__(self, store: TileStore, tiles: Sequence[int] | NDArray[np.intp]) -> None:
        self.store = store
        own = [store.tiles[i] for i in tiles]
        trained = {(t.city, t.stem, t.row, t.col) for t in own}
        everyone = {(t.city, t.stem, t.row, t.col) for t in store.tiles}
        self.barred = everyone - trained  # tiles of other parts, which no crop may touch
        cells = [
            (tile, tile.row + row, tile.col + col) for tile in own for row, col in _grid(TILE, TILE)
        ]
        # A picture's sides are seldom whole tiles: training sees the rest of it too.
        cells += [
            (tile, row, col)
            for tile in {(t.city, t.stem): t for t in own}.values()
            for row, col in _grid(*store.picture(tile).coverage.shape)
            if (tile.city, tile.stem, row // TILE * TILE, col // TILE * TILE) not in everyone
        ]
        self.cells = [
            (tile, row, col)
            for tile, row, col in cells
            if self._known(store.picture(tile).coverage, row, col)
        ]

    def __len__(self) -> int:
        return len(self.cells)

    @staticmethod
    def _known(coverage: NDArray[np.uint8], row: int, col: int) -> bool:
        return bool((coverage[row : row + CROP, col : col + CROP] != IGNORE).any())

    @property
    def cities(self) -> list[str]:
        return [tile.city for tile, _, _ in self.cells]

    def cut(
        self, cell: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pixels and coverage near a cell: moved by up to half a crop, nearer or farther, in
        another light. Where that would touch a tile of another part, the cell itself is cut."""
        tile, row, col = self.cells[cell]
        picture = self.store.picture(tile)
        side, moves = zoomed_size(CROP, rng), rng.uniform(-0.5, 0.5, 2) * CROP
        place = [
            self._inside(start + (CROP - side) / 2 + move, side, length)
            for start, move, length in zip((row, col), moves, picture.coverage.shape, strict=True)
        ]
        if self._touches(tile.city, tile.stem, place[0], place[1], side):
            place, side = [row, col], CROP
        pixels, coverage = zoomed(*picture.cut(place[0], place[1], side), CROP)
        return lit(pixels, rng), coverage

    def still(
        self, cell: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pixels and coverage of the cell itself, in another light."""
        tile, row, col = self.cells[cell]
        pixels, coverage = self.store.picture(tile).cut(row, col, CROP)
        return lit(pixels, rng), coverage

    @staticmethod
    def _inside(start: float, side: int, length: int) -> int:
        """The nearest start that keeps a crop in its picture, or a smaller picture in the crop."""
        low, high = sorted((0, length - side))
        return min(max(round(start), low), high)

    def _touches(self, city: str, stem: str, row: int, col: int, side: int) -> bool:
        rows = {row // TILE * TILE, (row + side - 1) // TILE * TILE}
        cols = {col // TILE * TILE, (col + side - 1) // TILE * TILE}
        return any((city, stem, r, c) in self.barred for r in rows for c in cols)
