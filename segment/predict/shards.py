"""The plan of a prediction by many processes: which block of which scene, and whose turn it is.

It stands in the output folder as `manifest.json`, made once and by the same rules everywhere, so
that any process can do a share, or do it again, without a word to the others. A block's mask
appears under its name whole or not at all, and carries the plan's digest: what is there is done.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from affine import Affine

from segment.data.ground import place_of
from segment.data.rasters import is_whole, open_raster
from segment.data.scenes import Scene
from segment.errors import InputError
from segment.predict.blending import Box, block_edges
from segment.storage.documents import read_json, write_json
from segment.storage.paths import AnyPath, local, writing

MANIFEST, MASKS = "manifest.json", "masks"
MARKS = 2  # the band of a mask that says how sure it is
TAG = "MINICNN_PLAN"  # of a mask: the digest of the plan that it belongs to
BLOCK = 18  # windows along a block's side, at most: about 8,000 pixels, minutes on a CPU
FEW = 4  # windows along a block's side: smaller ones cost so much more that work isn't shared
UNEVEN = 1.15  # the largest shard's work may be so many times the mean's
# Where a process that was started as one of many finds which: AWS Batch, MPICH, Open MPI.
INDEX = ("AWS_BATCH_JOB_ARRAY_INDEX", "PMI_RANK", "OMPI_COMM_WORLD_RANK")


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A scene as the plan knows it; `crs` is WKT, and None where it has no place."""

    image: str
    pixel_size: float | None
    height: int
    width: int
    crs: str | None
    transform: tuple[float, ...]

    @property
    def place(self) -> Affine:
        return Affine(*self.transform)


@dataclass(frozen=True)
class Piece:
    """A block of a scene, the unit of work: its mask is the file `name`."""

    name: str
    scene: int
    row: int
    col: int
    height: int
    width: int

    @property
    def box(self) -> Box:
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)


@dataclass(frozen=True)
class Plan:
    """Everything the masks depend on, and which blocks they come in.

    request: what was asked for, comparable before any scene is opened: `inputs` as they were named,
    the `model`'s SHA-256 and `name`, `threshold`, `separation` (and its pixel size in metres),
    `overlap`, `pixel_size`, `reading`, `views`, and the number of `shards`.
    left_out: a sentence about each scene that could not be opened, and has no blocks.
    """

    request: dict[str, Any]
    scenes: tuple[Source, ...]
    pieces: tuple[Piece, ...]
    left_out: tuple[str, ...] = ()

    @property
    def shards(self) -> int:
        return int(self.request["shards"])

    def of(self, shard: int) -> tuple[Piece, ...]:
        """The pieces of a shard, in order."""
        if not 0 <= shard < self.shards:
            raise InputError(f"shard {shard} of {self.shards}: 0 to {self.shards - 1} was expected")
        turns = zip(self.pieces, self._turns, strict=True)
        return tuple(piece for piece, turn in turns if turn == shard)

    @cached_property
    def _turns(self) -> list[int]:
        """Each piece's shard: the largest first, each to the shard that has the least so far, the
        equal ones in turn, so that empty country is everyone's."""
        work, turns = [0.0] * self.shards, [0] * len(self.pieces)
        for index in sorted(range(len(turns)), key=lambda i: -self._costs[i]):
            turns[index] = work.index(min(work))
            work[turns[index]] += self._costs[index]
        first = {turn: number for number, turn in enumerate(dict.fromkeys(turns))}
        return [first[turn] for turn in turns]  # numbered as they come

    @cached_property
    def _costs(self) -> list[float]:
        """What each piece costs: its area, on the ground if all scenes know their pixel size."""
        sizes = [scene.pixel_size for scene in self.scenes]
        sides = [size or 1.0 for size in sizes] if all(sizes) else [1.0] * len(sizes)
        return [piece.height * piece.width * sides[piece.scene] ** 2 for piece in self.pieces]

    @property
    def uneven(self) -> float:
        """The largest shard's work over the mean."""
        work = [0.0] * self.shards
        for turn, cost in zip(self._turns, self._costs, strict=True):
            work[turn] += cost
        return max(work) * self.shards / sum(work)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()

    def document(self) -> dict[str, Any]:
        """The plan as JSON: CRSs once, scenes and pieces as rows."""
        known = sorted({scene.crs for scene in self.scenes if scene.crs})
        scenes = [asdict(scene) for scene in self.scenes]
        for scene in scenes:
            scene["crs"] = known.index(scene["crs"]) if scene["crs"] else None
        pieces = [list(asdict(piece).values()) for piece in self.pieces]
        plan = {"request": self.request, "crs": known, "scenes": scenes, "pieces": pieces}
        return plan | ({"left_out": list(self.left_out)} if self.left_out else {})


def plan_of(
    request: dict[str, Any],
    scenes: Sequence[Scene],
    multiple: int,
    faulty: Sequence[InputError] = (),
) -> Plan:
    """Cut the scenes into blocks: as large as `BLOCK`, smaller where shards would differ in work.

    Blocks lie on the grid of blended windows, so one costs little more than its share of the scene.
    `faulty` is what is wrong with scenes that are left out. Raises InputError where two scenes
    would give one file.
    """
    left_out = tuple(map(str, faulty))
    stems = Counter(scene.stem for scene in scenes)
    for scene in scenes:
        if stems[scene.stem] > 1:
            raise InputError(f"{scene.image}: another scene is named {scene.stem}, too")
    sources = tuple(_source(scene, request["pixel_size"]) for scene in scenes)
    for side in range(BLOCK, 0, -1):
        pieces = [
            piece
            for index, (scene, source) in enumerate(zip(scenes, sources, strict=True))
            for piece in _pieces(index, scene.stem, source, request["overlap"], multiple, side)
        ]
        plan = Plan(request, sources, tuple(pieces), left_out)
        enough = len(pieces) >= plan.shards
        if enough and (plan.uneven <= UNEVEN or side <= FEW):
            break
    return plan


def _source(scene: Scene, pixel_size: float | None) -> Source:
    with open_raster(scene.image, own=True) as dataset:
        size = pixel_size or scene.pixel_size
        crs, transform = place_of(dataset)
        place = tuple(transform or Affine.identity())[:6]
        wkt = crs.to_wkt() if crs else None
        return Source(str(scene.image), size, dataset.height, dataset.width, wkt, place)


def _pieces(
    index: int, stem: str, source: Source, overlap: int, multiple: int, side: int
) -> Iterator[Piece]:
    rows, cols = (
        block_edges(size, overlap, multiple, side) for size in (source.height, source.width)
    )
    for top, bottom in pairwise(rows):
        for left, right in pairwise(cols):
            single = len(rows) == len(cols) == 2
            name = f"{stem}.tif" if single else f"{stem}_r{top}_c{left}.tif"
            yield Piece(name, index, top, left, bottom - top, right - left)


# ---------------------------------------------------------------- in the output folder


def write_plan(out: AnyPath, plan: Plan) -> None:
    with writing(out / MANIFEST) as file:
        write_json(file, plan.document())


def read_plan(out: AnyPath) -> Plan:
    """The plan in an output folder; InputError where there is none."""
    path = out / MANIFEST
    if not path.is_file():
        raise InputError(f"{path}: no such file; `segment.predict --shards N --out {out}` makes it")
    found = read_json(local([path])[0])
    try:
        scenes = tuple(
            Source(**scene | {"crs": None if scene["crs"] is None else found["crs"][scene["crs"]]})
            for scene in found["scenes"]
        )
        pieces = tuple(Piece(*piece) for piece in found["pieces"])
        plan = Plan(found["request"], scenes, pieces, tuple(found.get("left_out", ())))
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}: expected the plan of a sharded prediction") from error
    for sentence in plan.left_out:
        log.warning("left out of the plan: %s", sentence)
    return plan


def check_request(out: AnyPath, plan: Plan, request: dict[str, Any]) -> None:
    """InputError where the plan in `out` is of another request: its masks are not to be mixed."""
    for key, wanted in request.items():
        if (found := plan.request.get(key)) != wanted:
            raise InputError(
                f"{out / MANIFEST} is of another prediction ({key}: {found}, not {wanted}); "
                "give another --out, or remove that one"
            )


def is_done(path: AnyPath, plan: Plan, piece: Piece) -> bool:
    """Whether a piece's mask is there, of this plan, and can be read to its end."""
    return is_whole(path, (piece.height, piece.width), {TAG: plan.digest})


def own_index() -> int | None:
    """Which one of many processes this is, where something that starts many has said so."""
    told = (os.environ.get(name) for name in INDEX)
    return next((int(index) for index in told if index), None)


def missing(out: AnyPath, plan: Plan) -> dict[int, list[Piece]]:
    """Of each shard that isn't done, the pieces to write: told by one listing of the folder."""
    folder = out / MASKS
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    left = {
        shard: [piece for piece in plan.of(shard) if piece.name not in there]
        for shard in range(plan.shards)
    }
    return {shard: pieces for shard, pieces in left.items() if pieces}
