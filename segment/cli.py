"""What the commands share: arguments of the same name and meaning, exit codes."""

import argparse
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from minicnn.backend import DeviceError, choose_device, precision, set_precision
from minicnn.checkpoint import CheckpointError
from segment import interrupts
from segment.errors import InputError

BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143
AUTO = "auto"  # as --value-range


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Run a command and exit: 0, 2 with one line on bad input, 130 on Ctrl-C, 143 on SIGTERM."""
    signal.signal(signal.SIGTERM, _terminate)
    interrupts.imported()
    try:
        main(sys.argv[1:])
    except BaseException as error:
        sentence, code = ending(error)
        _fail(sentence, code)
    sys.exit(0)


def ending(error: BaseException) -> tuple[str, int]:
    """What a command that ends by `error` says, and its exit code; a bug is raised again."""
    match error:
        case InputError() | CheckpointError() | DeviceError():
            return f"error: {error}", BAD_INPUT
        case OSError():
            name = f": {error.filename}" if error.filename else ""
            return f"error: {error.strerror or error}{name}", BAD_INPUT
        case KeyboardInterrupt():
            return str(error) or "interrupted", INTERRUPTED
        case interrupts.Terminated():
            return str(error) or "terminated", TERMINATED
    raise error


def _terminate(signum: int, frame: object) -> NoReturn:
    raise interrupts.Terminated


def _fail(sentence: str, code: int) -> NoReturn:
    print(sentence, file=sys.stderr)
    sys.exit(code)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong; the usage is for --help."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """`--value-range auto` is one word where argparse counts two: it is given another."""
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            auto = word == AUTO and words[-1:] == ["--value-range"]
            words += [word, word] if auto else [word]
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        _fail(f"error: {message} (see {self.prog} --help)", BAD_INPUT)


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser whose --help starts with `python -m segment.NAME`."""
    return _Parser(prog=f"python -m segment.{name}", description=description)


def add_device(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="where to run; default: auto",
    )
    to.add_argument(
        "--precision",
        choices=("tf32", "float32"),
        help="what convolutions on a GPU multiply in; default: tf32, on GPUs with cores for it",
    )


def chosen_device(options: argparse.Namespace) -> str:
    """The device that `add_device`'s options name, its precision set."""
    device = choose_device(options.device)
    if options.precision:
        set_precision(options.precision)
        precision(device)  # an error, where it can't be had
    return device


def add_model(to: argparse.ArgumentParser) -> None:
    about = "a run's folder or a model file; default: the bundled"
    to.add_argument("--model", metavar="RUN|FILE", help=about)


def add_data(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="folders (images/ with gt/ or masks/) or CSV files; default: synthetic scenes",
    )
    to.add_argument(
        "--cache", metavar="DIR", help="where the tiles are kept; default: user's cache"
    )


def add_reading(to: argparse.ArgumentParser) -> None:
    """How pixels are read: needed only for rasters that are not 8-bit RGB."""
    to.add_argument(
        "--bands",
        type=int,
        nargs=3,
        metavar="B",
        help="bands to read as red, green, blue; default: those that the file or model names, "
        "else the first three",
    )
    to.add_argument(
        "--value-range",
        type=_value_or_auto,
        nargs=2,
        action=_ValueRange,
        metavar=("LOW", "HIGH"),
        help="values that become 0 and 255, for rasters that are not 8-bit; auto: the 2nd and 98th "
        "percentile of each scene",
    )


def _value_or_auto(text: str) -> float | str:
    return text if text == AUTO else float(text)


class _ValueRange(argparse.Action):
    """LOW HIGH, or `auto`, which `_Parser` has made two words."""

    def __call__(self, parser: Any, to: argparse.Namespace, values: Any, name: Any = None) -> None:
        if AUTO in values and values != [AUTO, AUTO]:
            parser.error(f"argument {name}: expected LOW HIGH, or auto")
        setattr(to, self.dest, AUTO if AUTO in values else values)


def add_pixel_size(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "--pixel-size",
        type=positive,
        metavar="M",
        help="what a pixel of the scenes measures on the ground, in metres, where the files don't "
        "say or are wrong; default: what they say (a CSV can say it of each), else the model's",
    )


def add_outlines(to: argparse.ArgumentParser) -> None:
    """What is drawn of the buildings' outlines."""
    area_or_length = within(0, 1e12)
    to.add_argument(
        "--min-area",
        type=area_or_length,
        default=0.0,
        metavar="M2",
        help="drop smaller outlines; default: the size that the model was calibrated to drop",
    )
    to.add_argument(
        "--simplify",
        type=area_or_length,
        default=0.0,
        metavar="M",
        help="tolerance of outlines in metres",
    )


def add_separate(to: argparse.ArgumentParser, default: str) -> None:
    to.add_argument(
        "--separate",
        action=argparse.BooleanOptionalAction,
        help="part buildings that touch, where the probability falls between them; default: "
        + default,
    )


def positive(text: str) -> float:
    """An argparse type: a number above zero."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number above zero")
    return value


def within(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`."""

    def read(text: str) -> float:
        value = _number(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is no number from {low:g} to {high:g}")
        return value

    return read


def whole(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `least` up."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} up")
        return int(text)

    return read


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_folder(path: Path) -> None:
    """InputError if a file stands where a folder is to be: at `path`, or where a parent would."""
    there = next(place for place in (path, *path.parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{there} is a file, where a folder was expected")
