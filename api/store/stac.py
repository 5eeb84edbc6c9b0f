"""A stored scene as a STAC 1.1 Item: where it lies, when it was taken, what there is of it."""

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pyproj
import shapely
from flask import url_for

from segment.data.ground import ground_pixel_size
from segment.geo.footprints import globe_box, on_the_globe, unwrapped

PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
COLLECTION = "scenes"
FIRST_AERIAL_PHOTOGRAPH = "1858-01-01T00:00:00Z"  # by Nadar, from a balloon over Petit-Bicêtre


TIMES = ("datetime", "start_datetime", "end_datetime")


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


def utc(text: str) -> str:
    """A time of RFC 3339, with its zone, in UTC as STAC wants it; ValueError if it is none."""
    form = r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)"
    told = re.fullmatch(form, text, re.ASCII)
    if not told:
        raise ValueError(f"{text} is no time")
    zone = "+00:00" if told[4] in "zZ" else told[4]
    try:
        when = datetime.fromisoformat(f"{told[1]}T{told[2]}{zone}").astimezone(timezone.utc)
    except OverflowError:  # in the year 1 or 9999
        raise ValueError(f"{text} is no time in UTC") from None
    return when.strftime("%Y-%m-%dT%H:%M:%S").zfill(19) + (told[3] or "") + "Z"


def describe(item_id: str, scene: Any) -> dict[str, Any]:
    """The Item of an open scene, less links and assets: those depend on who asks."""
    ring, stored = corners(scene), now()
    properties: dict[str, Any] = {
        **_when(scene.tags().get("TIFFTAG_DATETIME", "")),
        "created": stored,
        "updated": stored,
        "proj:shape": [scene.height, scene.width],
    }
    if ring:
        epsg = scene.crs.to_epsg()
        properties["proj:code"] = f"EPSG:{epsg}" if epsg else None
        if not epsg:
            properties["proj:wkt2"] = scene.crs.to_wkt(version="WKT2_2019")
        properties["proj:transform"] = list(scene.transform)[:6]
        properties["gsd"] = ground_pixel_size(scene)
    item: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [PROJECTION],
        "id": item_id,
        "geometry": None,
        "properties": {k: v for k, v in properties.items() if k != "gsd" or v},
    }
    if ring:
        whole = unwrapped(np.array([shapely.Polygon(ring)]))
        item["geometry"] = shapely.geometry.mapping(on_the_globe(whole)[0])
        item["bbox"] = globe_box(whole[0])
    return item


def _when(tag: str) -> dict[str, str | None]:
    """When it was taken: as the TIFF says; else only that it was before now."""
    told = re.fullmatch(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)", tag)
    if told:
        text = f"{told[1]}-{told[2]}-{told[3]}T{told[4]}"
        try:
            datetime.fromisoformat(text)
            return {"datetime": text + "Z"}
        except ValueError:
            pass
    return {"datetime": None, "start_datetime": FIRST_AERIAL_PHOTOGRAPH, "end_datetime": now()}


def replaced(item: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """The item with a client's properties; what the file itself tells is not the client's."""
    own, properties = item["properties"], body["properties"]
    fixed = {k: v for k, v in own.items() if k.startswith("proj:") or k == "created"}
    times = {k: own[k] for k in TIMES if k in own}
    if properties.get("datetime"):
        times = {}
    elif "start_datetime" in properties:
        times = {"datetime": None}
    given = {k: v for k, v in properties.items() if k[:5] != "proj:" and (k != "datetime" or v)}
    given |= {k: utc(given[k]) for k in TIMES if k in given}
    told = [PROJECTION, *body.get("stac_extensions", item["stac_extensions"])]
    item = {**item, "stac_extensions": list(dict.fromkeys(told))}
    return {**item, "properties": {**times, **given, **fixed, "updated": now()}}


def linked(item: Mapping[str, Any], media_type: str) -> dict[str, Any]:
    """The Item as it is answered: with links and assets at this service's address."""

    def url(view: str, **query: Any) -> str:
        return url_for(f"items.{view}", item_id=item["id"], _external=True, **query)

    outlines = {"response_type": "geojson"}
    assets = {
        "image": {"href": url("image"), "type": media_type, "roles": ["data"]},
        "mask": {
            "href": url("mask", response_type="file"),
            "type": "image/tiff; application=geotiff",
            "roles": ["data-mask"],
        },
    }
    if item["geometry"]:
        assets["buildings"] = {
            "href": url("mask", **outlines),
            "type": "application/geo+json",
            "roles": ["data"],
        }
    links = [{"rel": "self", "href": url("get"), "type": "application/geo+json"}]
    for rel, view in (("root", "landing"), ("parent", "collection"), ("collection", "collection")):
        href = url_for(f"features.{view}", _external=True)
        links.append({"rel": rel, "href": href, "type": "application/json"})
    if item["geometry"]:
        tiles = url_for("tiles.tilejson", item_id=item["id"], _external=True)
        links.append({"rel": "tilejson", "href": tiles, "type": "application/json"})
    return {**item, "collection": COLLECTION, "links": links, "assets": assets}


def placed(scene: Any) -> bool:
    return scene.crs is not None and not scene.transform.is_identity


def corners(scene: Any) -> list[list[float]] | None:
    """Longitude and latitude of the upper left, upper right, lower right and lower left corner."""
    if not placed(scene):
        return None
    try:
        to_lonlat = pyproj.Transformer.from_crs(scene.crs.to_wkt(), "OGC:CRS84", always_xy=True)
    except pyproj.exceptions.ProjError:
        return None
    width, height = scene.width, scene.height
    at = [scene.transform @ corner for corner in ((0, 0), (width, 0), (width, height), (0, height))]
    found = [list(to_lonlat.transform(x, y)) for x, y in at]
    if not all(abs(lon) <= 360 and abs(lat) <= 90 for lon, lat in found):  # so of NaN and inf
        return None
    turned = [[(lon + 180) % 360 - 180 if abs(lon) > 180 else lon, lat] for lon, lat in found]
    return [[round(value, 8) for value in corner] for corner in turned]
