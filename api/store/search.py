"""Which stored items lie in a box and a time (OGC API Features Part 1, 7.15)."""

from collections.abc import Mapping
from typing import Any

from api.errors import Problem
from api.store.stac import utc


def wanted(item: Mapping[str, Any], bbox: str | None, when: str | None) -> bool:
    """Whether an item meets the box and the time, each where one is given."""
    return (not bbox or _meets(item.get("bbox"), bbox)) and (not when or _during(item, when))


def _meets(box: list[float] | None, asked: str) -> bool:
    numbers = [float(number) for number in asked.split(",")]
    west, south, east, north = numbers if len(numbers) == 4 else (*numbers[:2], *numbers[3:5])
    if not box or box[3] < south or box[1] > north:
        return False
    return any(
        left <= right_most and left_most <= right
        for left, right in _spans(box[0], box[2])
        for left_most, right_most in _spans(west, east)
    )


def _spans(west: float, east: float) -> list[tuple[float, float]]:
    """A range of longitudes; one across 180 degrees, whose west is the larger, is two."""
    return [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]


def _during(item: Mapping[str, Any], asked: str) -> bool:
    start, _, end = asked.partition("/")
    end = end if "/" in asked else start
    try:
        first, last = (utc(part) if part not in ("", "..") else "" for part in (start, end))
    except ValueError:
        sentence = "The parameter 'datetime' wants a time of RFC 3339, or two with a / between."
        raise Problem(422, sentence) from None
    about = item["properties"]
    begun = about.get("datetime") or about.get("start_datetime") or ""
    over = about.get("datetime") or about.get("end_datetime") or ""
    return (not last or begun <= last) and (not first or over >= first)
