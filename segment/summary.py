"""Print the U-Net's layers and its parameter count: `python -m segment.summary`."""

from minicnn.summary import table
from segment.cli import parser, run
from segment.data.tiles import TILE
from segment.unet import UNet


def main(arguments: list[str]) -> None:
    parser("summary", "Print the U-Net's layers, shapes and parameter counts.").parse_args(
        arguments
    )
    net = UNet()
    print(table(net.stages((1, TILE, TILE, net.in_channels))))


if __name__ == "__main__":
    run(main)
