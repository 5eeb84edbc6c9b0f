"""Building outlines as GeoParquet, batch by batch: those of a country don't fit in memory."""

import json
from collections.abc import Iterable
from pathlib import Path

from minicnn.files import atomic_write
from segment.geo.footprints import Footprints

GROUP = 50_000  # rows that are held, and that a reader skips by their bounding box: about 10 MB
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {
        "geometry": {
            "encoding": "WKB",
            "geometry_types": ["Polygon", "MultiPolygon"],  # two parts where 180 degrees cuts one
            "orientation": "counterclockwise",
            "covering": {"bbox": {side: ["bbox", side] for side in _SIDES}},
        }
    },
}


def write_geoparquet(batches: Iterable[Footprints], path: str | Path) -> int:
    """Write the columns `geometry`, `bbox` and the buildings' `properties`; returns how many.

    The geometry is WGS 84 longitude and latitude, the format's default (GeoParquet 1.1, OGC).
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    bbox = pa.struct([(side, pa.float64()) for side in _SIDES])
    about = [("id", pa.int64()), ("area_m2", pa.float64()), ("confidence", pa.float64())]
    fields = [("geometry", pa.binary()), *about, ("model", pa.string()), ("bbox", bbox)]
    schema = pa.schema(fields, metadata={"geo": json.dumps(_GEO)})
    held, count = schema.empty_table(), 0
    with (
        atomic_write(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as file,
    ):
        for found in batches:
            count += len(found.lonlat)
            bounds = pa.StructArray.from_arrays(list(shapely.bounds(found.lonlat).T), _SIDES)
            columns = [shapely.to_wkb(found.lonlat), found.id, found.area_m2]
            columns += [found.confidence.round(3), [found.model] * len(found.id), bounds]
            held = pa.concat_tables([held, pa.table(columns, schema=schema)])
            if len(held) >= GROUP:
                file.write_table(held, GROUP)
                held = schema.empty_table()
        file.write_table(held)
    return count
