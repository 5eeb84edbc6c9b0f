"""One map of the masks of many processes: `python -m segment.merge`."""

import argparse
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from segment.cli import add_outlines, add_separate, parser
from segment.data.rasters import CRS, write_cog
from segment.errors import InputError
from segment.geo import buildings
from segment.geo.footprints import Footprints, placed, require_place, require_vector
from segment.geo.geoparquet import write_geoparquet
from segment.geo.separate import TOGETHER
from segment.merge.mosaic import Masks, Mosaic, blocks, mosaics, places, reader, write_vrt
from segment.predict.scene import COLOURS, mask_tags
from segment.predict.shards import MARKS, MASKS, Piece, Plan, missing, read_plan
from segment.progress import progress
from segment.storage.paths import AnyPath, local, to_path, writing

NAMED = 5  # shards in an error, and masks of a shard

log = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    out = to_path(options.out)
    plan = read_plan(out)
    left = missing(out, plan)
    if options.status:
        _print_status(plan, left)
        return
    if left:
        raise InputError(_complaint(plan, left))
    require_vector("pyarrow")
    merge(out, plan, options)


def _parser() -> argparse.ArgumentParser:
    p = parser(
        "merge",
        "Make one map of what `python -m segment.predict --shards N` wrote: mosaic.vrt, and "
        "footprints.parquet with every building once. Memory grows with the buildings in a row of "
        "blocks, not with the area.",
    )
    p.add_argument("out", metavar="PATH", help="the folder that --out named")
    p.add_argument("--status", action="store_true", help="tell what is done so far, do nothing")
    p.add_argument(
        "--cog", action="store_true", help="write mosaic.tif, too: one Cloud-Optimised GeoTIFF"
    )
    add_outlines(p)
    add_separate(p, "yes")
    p.set_defaults(separate=True)
    return p


def _print_status(plan: Plan, left: dict[int, list[Piece]]) -> None:
    count = sum(map(len, left.values()))
    for shard, pieces in left.items():
        print(f"shard {shard}: {len(plan.of(shard)) - len(pieces)} of {len(plan.of(shard))} masks")
    print(f"{len(plan.pieces) - count} of {len(plan.pieces)} masks are done")


def _complaint(plan: Plan, left: dict[int, list[Piece]]) -> str:
    count = sum(map(len, left.values()))
    named = [
        f"shard {shard} ({_shortened([piece.name for piece in pieces], ', ')})"
        for shard, pieces in left.items()
    ]
    return f"{count} of {len(plan.pieces)} masks are missing: run again {_shortened(named, '; ')}"


def _shortened(names: list[str], separator: str) -> str:
    more = len(names) - NAMED
    return separator.join([*names[:NAMED], *([f"and {more} more"] if more > 0 else [])])


def merge(out: AnyPath, plan: Plan, options: argparse.Namespace) -> None:
    """Write the virtual raster of every grid, its COG if asked for, and the outlines of all."""
    found = mosaics(plan)
    if len(found) > 1:
        about = "the scenes lie on %d grids (CRS, pixel size, alignment): each is a mosaic of its "
        log.warning(about + "own, and a building on two of them is outlined on both", len(found))
    with tempfile.TemporaryDirectory(prefix="minicnn-") as cache:
        files = local((out / MASKS / piece.name for piece in plan.pieces), cache)
        masks = {piece.name: file for piece, file in zip(plan.pieces, files, strict=True)}
        for number, mosaic in enumerate(found, start=1):
            name = f"mosaic-{number}" if len(found) > 1 else "mosaic"
            with writing(out / f"{name}.vrt") as file:
                write_vrt(mosaic, file)
            print(out / f"{name}.vrt")
            if options.cog:
                with writing(out / f"{name}.tif") as file:
                    tags = mask_tags(plan.request["name"], plan.request["threshold"])
                    _write_cog(mosaic, masks, file, tags)
                print(out / f"{name}.tif")
        with writing(out / "footprints.parquet") as file:
            of = masks, options, plan.request["name"]
            outlined = (batch for mosaic in found for batch in _outlined(mosaic, *of))
            count = write_geoparquet(outlined, file)
        print(f"{out / 'footprints.parquet'}: {count} buildings")


def _write_cog(mosaic: Mosaic, masks: Masks, path: Path, tags: dict[str, str]) -> None:
    size = {"height": mosaic.height, "width": mosaic.width, "count": 1, "dtype": "uint8"}
    profile = size | {"crs": mosaic.crs, "transform": mosaic.transform, "colormap": COLOURS}
    with write_cog(path, profile, tags) as dataset:
        for window, mask, valid in blocks(mosaic, masks):
            dataset.write(mask, 1, window=window)
            dataset.write_mask(valid, window=window)


def _outlined(
    mosaic: Mosaic, masks: Masks, options: argparse.Namespace, name: str
) -> Iterator[Footprints]:
    """The buildings of a mosaic, batch by batch; `name` is the model's."""
    crs = CRS.from_wkt(mosaic.crs) if mosaic.crs else None
    try:
        require_place(crs, mosaic.transform, mosaic.pieces[0].name)
    except InputError as error:
        log.warning("%s: it gives none", error)
        return
    rows = progress(places(mosaic, buildings.BLOCK), desc="outlines", unit="row")
    shape = mosaic.height, mosaic.width
    how = mosaic.separation.obeying(None, options.min_area) if options.separate else TOGETHER
    read = reader(mosaic, masks, MARKS)
    for found in buildings.buildings(lambda r, c: read(r, c)[0], rows, shape, how):
        wishes = options.min_area, options.simplify
        outlines = placed(found, shape, mosaic.transform, crs, *wishes)
        yield replace(outlines, model=name)
