"""Draw scenes into a folder or a bucket: `python -m segment.synthetic`."""

import tempfile
from pathlib import Path

from segment.cli import parser
from segment.storage.paths import to_path
from segment.storage.s3 import S3Path
from segment.synthetic.scenes import write_scenes
from segment.synthetic.town import CITIES


def main(arguments: list[str]) -> None:
    p = parser("synthetic", "Draw synthetic aerial scenes with their building masks.")
    p.add_argument("--out", required=True, metavar="FOLDER", help="gets images/ and gt/")
    p.add_argument("--size", type=int, default=512, metavar="N", help="pixels a side")
    p.add_argument("--scenes", type=int, default=3, metavar="N", help="scenes a city")
    counts = range(1, len(CITIES) + 1)
    p.add_argument("--cities", type=int, default=len(CITIES), choices=counts, help="of them")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="draws other scenes")
    options = p.parse_args(arguments)
    out = to_path(options.out)
    with tempfile.TemporaryDirectory(prefix="minicnn-") as temporary:
        folder = out if isinstance(out, Path) else Path(temporary)
        paths = write_scenes(
            folder, CITIES[: options.cities], options.scenes, options.size, options.seed
        )
        if isinstance(out, S3Path):
            for file in sorted(folder.rglob("*.tif")):
                (out / str(file.relative_to(folder))).upload(file)
    print(f"{len(paths)} scenes of {options.size} px in {options.out}")
