"""Exit codes of real processes, one clear line on bad input, the arguments commands share."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest

from segment import cli

HEADER = """\
import os, sys, time
from minicnn.backend import DeviceError
from minicnn.checkpoint import CheckpointError
from segment import cli
from segment.errors import InputError
from segment.interrupts import Terminated
from segment.progress import progress
"""


def start(body, *arguments, **streams):
    """A process that runs a command whose main does `body`."""
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    script = f"{HEADER}def main(argv):\n{indented}cli.run(main)\n"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([sys.executable, "-c", script, *arguments], text=True, **streams)


def run(body, *arguments):
    process = start(body, *arguments)
    out, err = process.communicate(timeout=60)
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def test_success_is_0():
    result = run("print(argv)", "--data", "folder")
    assert (result.code, result.out, result.err) == (0, "['--data', 'folder']\n", "")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise InputError('a.tif: expected three bands')", "a.tif: expected three bands"),
        ("raise CheckpointError('m: cut off')", "m: cut off"),
        ("raise DeviceError('device gpu needs CuPy')", "device gpu needs CuPy"),
        ("open('/no/such/file')", "No such file or directory: /no/such/file"),
        ("raise OSError(28, os.strerror(28), 'out.tif')", "No space left on device: out.tif"),
        ("raise OSError('a.tif: not recognised')", "a.tif: not recognised"),
        (
            "cli.add_device(p := cli.parser('x', 'y'))\np.parse_args(argv)\nraise InputError('z')",
            "z",
        ),
    ],
)
def test_bad_input_is_2_with_one_line(body, sentence):
    result = run(body)
    assert (result.code, result.out, result.err) == (2, "", f"error: {sentence}\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--pixel-size", "0"], "0 is no number above zero"),
        (["--pixel-size", "nan"], "nan is no number above zero"),
        (["--pixel-size", "wide"], "wide is no number above zero"),
        (["--share", "1.1"], "1.1 is no number from 0 to 1"),
        (["--share", "nan"], "nan is no number from 0 to 1"),
        (["--count", "0"], "0 is no whole number from 1 up"),
        (["--count", "-1"], "-1 is no whole number from 1 up"),
        (["--count", "2.5"], "2.5 is no whole number from 1 up"),
        (["--bands", "1"], "expected 3 arguments"),
        (["--no-such"], "unrecognized arguments: --no-such"),
    ],
)
def test_bad_arguments_are_2(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as caught:
        every_argument().parse_args(arguments)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and complaint in said and said.count("\n") == 1


def every_argument():
    parser = cli.parser("train", "Train a model.")
    for add in (cli.add_device, cli.add_data, cli.add_reading, cli.add_pixel_size):
        add(parser)
    parser.add_argument("--share", type=cli.within(0, 1))
    parser.add_argument("--count", type=cli.whole(1))
    return parser


def test_help_is_0_and_shows_the_command_and_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        every_argument().parse_args(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m segment.train ")
    assert "default: auto" in text


def test_arguments_are_read():
    line = "--device cpu --data a b.csv --bands 4 3 2 --value-range 0 2047 --pixel-size 0.3"
    arguments = every_argument().parse_args(line.split())
    assert arguments.device == "cpu"
    assert arguments.data == ["a", "b.csv"]
    assert arguments.bands == [4, 3, 2]
    assert arguments.value_range == [0, 2047]
    assert arguments.pixel_size == 0.3


def test_any_other_error_is_a_bug_and_shows_itself():
    result = run("raise ZeroDivisionError")
    assert result.code == 1
    assert "Traceback" in result.err


WAIT = """\
try:
    print("ready", flush=True)
    time.sleep(60)
"""
TIDY = """\
except Exception:
    print("an error's handler took the signal")
finally:
    print("saved")
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "terminated\n")],
)
def test_signals_end_a_command_after_it_has_tidied_up(number, code, word):
    process = start(WAIT + TIDY)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "saved\n", word)


@pytest.mark.parametrize(
    ("number", "code", "kind"),
    [(signal.SIGINT, 130, "KeyboardInterrupt"), (signal.SIGTERM, 143, "Terminated")],
)
def test_a_command_may_say_how_to_resume(number, code, kind):
    hint = f"except {kind}:\n    raise {kind}('resume with --resume') from None"
    process = start(WAIT + hint)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "resume with --resume\n")


PROGRESS = "print(sum(progress(range(5), total=5, desc='tiles')))"


def test_progress_is_silent_off_a_terminal():
    result = run(PROGRESS)
    assert (result.code, result.out, result.err) == (0, "10\n", "")


def test_progress_shows_on_a_terminal():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # 24 lines of 80
    os.set_blocking(ours, False)
    process = start(PROGRESS, stderr=theirs)
    out, _ = process.communicate(timeout=60)
    shown = os.read(ours, 10_000).decode()
    os.close(theirs)
    os.close(ours)
    assert (process.returncode, out) == (0, "10\n")
    assert "tiles" in shown
