"""Which tiles train, validate and test: drawn once, written to a file, and free of leaks."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minicnn.files import write_text
from segment.data.tiles import Tile
from segment.errors import InputError

PARTS = ("train", "val", "test")
SCENARIOS = ("random", "scene", "city", "inria")
TEST_SHARE, VAL_SHARE = 0.15, 0.2  # of all tiles; of the tiles that are not test

_KINDS = {"random": "tile", "scene": "scene", "city": "city", "inria": "scene"}
_GROUPS: dict[str, Callable[[Tile], Hashable]] = {
    "tile": lambda tile: tile.id,
    "scene": lambda tile: (tile.city, tile.scene),
    "city": lambda tile: tile.city,
}


@dataclass(frozen=True)
class Split:
    """The ids of the tiles in each part, and how they were drawn."""

    scenario: str
    seed: int
    parts: dict[str, list[str]]

    def save(self, path: str | Path) -> None:
        """Write the split as JSON; equal splits give equal bytes."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Split":
        """Read what `save` wrote; InputError for anything else."""
        try:
            split = cls(**json.loads(Path(path).read_text(encoding="utf-8")))
            whole = set(split.parts) == set(PARTS) and all(
                isinstance(tile, str) for part in PARTS for tile in split.parts[part]
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no split file") from error
        if not whole:
            raise InputError(f"{path} is no split file: tile ids of train, val and test expected")
        return split

    @classmethod
    def of(cls, path: str | Path, tiles: Sequence[Tile]) -> "Split":
        """The split that a file gives these tiles: it names tiles, pictures (city/stem), scenes
        (city/scene) or whole cities, and the narrowest name counts. So it holds good for tiles of
        another size, and for data that came later; tiles it does not name are left out.
        """
        named = cls.load(path)
        part_of = {name: part for part in PARTS for name in named.parts[part]}
        parts: dict[str, list[str]] = {part: [] for part in PARTS}
        for tile in tiles:
            ways = (tile.id, f"{tile.city}/{tile.stem}", f"{tile.city}/{tile.scene}", tile.city)
            part = next((part_of[name] for name in ways if name in part_of), None)
            if part is not None:
                parts[part].append(tile.id)
        empty = [part for part in PARTS if not parts[part]]
        if empty:
            raise InputError(f"{path} names no tile of the data for {', '.join(empty)}")
        return cls(named.scenario, named.seed, {part: sorted(ids) for part, ids in parts.items()})

    def indices(self, tiles: Sequence[Tile], part: str) -> NDArray[np.intp]:
        """Where the tiles of a part stand in `tiles`, rising; InputError if one is not there."""
        places = {tile.id: index for index, tile in enumerate(tiles)}
        missing = [tile for tile in self.parts[part] if tile not in places]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(self.parts[part])} {part} tiles of the split are not in "
                f"the data (the first is {missing[0]}): it was drawn from other data"
            )
        return np.array(sorted(places[tile] for tile in self.parts[part]), dtype=np.intp)


def scenario_or_file(text: str) -> str:
    """The value of --split: the name of a scenario, or a file that `Split.of` reads."""
    if text not in SCENARIOS and not Path(text).is_file():
        raise ValueError(f"one of {', '.join(SCENARIOS)} or a split file was expected")
    return text if text in SCENARIOS else str(Path(text).resolve())


def make_split(tiles: Sequence[Tile], scenario: str, seed: int) -> Split:
    """Draw 15 % of the tiles for test, then 20 % of the rest for validation.

    random: single tiles (neighbours may part: an optimistic score); scene, city: whole ones, drawn
    until the share of tiles is met as closely as their sizes allow; inria: the scenes 1 to 5 of
    each city are the test part (as the authors of that data set advise), validation is drawn by
    scene. The order of `tiles` has no say. Any other scenario is a file: see `Split.of`.
    InputError where a part would stay empty.
    """
    if scenario not in SCENARIOS:
        if not Path(scenario).is_file():
            raise InputError(
                f"split {scenario}: one of {', '.join(SCENARIOS)} or a file was expected"
            )
        return Split.of(scenario, tiles)
    group = _GROUPS[_KINDS[scenario]]
    rng = np.random.default_rng(seed)
    sizes = Counter(group(tile) for tile in tiles)
    if scenario == "inria":
        test = {group(tile) for tile in tiles if _scene_number(tile) in range(1, 6)}
        if not test:
            raise InputError("split inria: no scene is numbered 1 to 5: test would be empty")
    else:
        _demand(len(sizes) >= 3, scenario, f"at least 3, one a part, but the data has {len(sizes)}")
        test = _draw(sizes, TEST_SHARE, len(sizes) - 2, rng)
    rest = Counter({name: size for name, size in sizes.items() if name not in test})
    _demand(len(rest) >= 2, scenario, f"at least 2 beside the test part, but there are {len(rest)}")
    val = _draw(rest, VAL_SHARE, len(rest) - 1, rng)
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for tile in tiles:
        name = group(tile)
        parts["test" if name in test else "val" if name in val else "train"].append(tile.id)
    return Split(scenario, seed, {part: sorted(ids) for part, ids in parts.items()})


def _demand(met: bool, scenario: str, what: str) -> None:
    if not met:
        kind = _KINDS[scenario]
        raise InputError(
            f"split {scenario}: a part would be empty: it needs {what} ({kind} by {kind}): "
            "add data or choose another --split"
        )


def _draw(
    sizes: Counter[Hashable], share: float, most: int, rng: np.random.Generator
) -> set[Hashable]:
    """1 to `most` groups in random order, each taken if it brings the total nearer to the share."""
    names = sorted(sizes, key=str)
    order = [names[index] for index in rng.permutation(len(names))]
    target, total = share * sum(sizes.values()), 0
    drawn: list[Hashable] = []
    for name in order:
        if len(drawn) < most and abs(total + sizes[name] - target) < abs(total - target):
            drawn.append(name)
            total += sizes[name]
    return set(drawn) or {min(order, key=sizes.__getitem__)}


def _scene_number(tile: Tile) -> int | None:
    """7 for the scene austin7 of the city austin; None where the name is not of this form."""
    number = tile.scene.removeprefix(tile.city)
    return int(number) if number.isdecimal() and number != tile.scene else None
