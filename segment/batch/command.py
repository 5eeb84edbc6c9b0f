"""Train and predict in AWS: `python -m segment.batch`."""

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from segment.batch import doctor, images, jobs, stack
from segment.cli import parser, positive, whole
from segment.errors import InputError, needed
from segment.predict import command as predict
from segment.train import command as train

SHARDS = jobs.LARGEST_ARRAY


def main(arguments: list[str]) -> None:
    own, *passed = _split(arguments)
    options = _parser().parse_args(own)
    if passed and options.command not in ("train", "predict"):
        raise InputError(f"{options.command} takes nothing after --")
    needed("AWS", "boto3")
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        # boto3 knows AWS_DEFAULT_REGION only; everything else of AWS sets and reads AWS_REGION.
        aws = boto3.Session(region_name=os.environ.get("AWS_REGION"))
        _RUN[options.command](aws, options, *passed)
    except (BotoCoreError, ClientError) as error:
        raise InputError(f"AWS: {' '.join(str(error).split())}") from error


def _split(arguments: list[str]) -> list[list[str]]:
    """The batch command's own arguments, and those after each `--`."""
    parts: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--":
            parts.append([])
        else:
            parts[-1].append(argument)
    return parts


# ---------------------------------------------------------------- the commands


def _deploy(aws: Any, options: argparse.Namespace) -> None:
    given = dict(options.set)
    given["ImageTag"] = options.tag or given.get("ImageTag") or images.release_tag()
    if options.dry_run and _no_account(aws):
        print("no AWS account is at hand: this is what a new stack has")
        stack.print_template()
    else:
        stack.deploy(aws, options.stack, given, options.dry_run)


def _no_account(aws: Any) -> bool:
    return aws.region_name is None or aws.get_credentials() is None


def _train(aws: Any, options: argparse.Namespace, command: list[str] | None = None) -> None:
    asked = train.arguments().parse_args(command or [])
    if asked.out is None or asked.data is None:
        raise InputError(
            "after -- the arguments of segment.train were expected, --data and --out among them"
        )
    _require_s3([*(asked.data or []), asked.out, *([asked.init] if asked.init else [])])
    # A retried or repeated job goes on where the last one stopped.
    resume = [] if asked.resume else ["--resume"]
    full = ["train", *(command or []), *resume, "--device", options.device]
    place = _place(aws, options)
    _announce(options, place, 1, full)
    if place and not options.dry_run:
        jobs.submit(aws, place, full, f"train {asked.out[5:]}", options.hours)


def _predict(
    aws: Any,
    options: argparse.Namespace,
    command: list[str] | None = None,
    merging: list[str] | None = None,
) -> None:
    asked = predict.arguments().parse_args(command or [])
    _require_s3([*asked.scenes, asked.out, *([asked.model] if asked.model else [])])
    if options.shards > SHARDS:
        raise InputError(f"--shards {options.shards}: an array has {SHARDS:,} jobs at most")
    shards = ["--shards", str(options.shards)]
    if options.shards == 1:  # an array has two jobs at least, and only they are told their number
        shards += ["--shard", "0"]
    full = ["predict", *(command or []), *shards, "--device", options.device]
    merge = ["merge", asked.out, *(merging or [])]
    place = _place(aws, options)
    _announce(options, place, options.shards, full, merge)
    if options.dry_run or place is None:
        return
    title, hours, plain = asked.out[5:], options.hours, jobs.Place.of(aws, options.stack, "cpu")
    plan = None
    if options.shards > 1:  # without a number it makes the plan, so that no shard need do it
        plan = jobs.submit(aws, plain, full, f"plan {title}", hours)
    array = jobs.submit(aws, place, full, f"predict {title}", hours, options.shards, plan)
    jobs.submit(aws, plain, merge, f"merge {title}", hours, after=array)


def _place(aws: Any, options: argparse.Namespace) -> jobs.Place | None:
    """Where the jobs go; None where a dry run has no account to ask."""
    if options.dry_run and _no_account(aws):
        return None
    return jobs.Place.of(aws, options.stack, options.device)


def _announce(
    options: argparse.Namespace, place: jobs.Place | None, count: int, *commands: list[str]
) -> None:
    """What will run, and what it takes at most, before anything does."""
    for command in commands:
        print(" ".join(command))
    each, unit = (place.needs["VCPU"], "vCPU") if place else (1.0, "machine")
    if options.device == "gpu":
        each, unit = 1.0, "GPU"
    print(f"at most {count * options.hours * each:,.1f} {unit} hours an attempt")


def _require_s3(paths: list[str]) -> None:
    for path in paths:
        if not path.startswith("s3://"):
            raise InputError(f"{path}: s3://bucket/key was expected, since jobs run elsewhere")


_RUN: dict[str, Callable[..., None]] = {
    "push": lambda aws, o: images.push(aws, o.device, o.image, o.build_option),
    "deploy": _deploy,
    "train": _train,
    "predict": _predict,
    "status": lambda aws, o: jobs.show(aws, o.stack, o.job),
    "logs": lambda aws, o: jobs.show_logs(aws, o.job, o.follow),
    "cancel": lambda aws, o: jobs.cancel(aws, o.job),
    "doctor": lambda aws, o: doctor.examine(aws, o.stack, o.job),
}

# ---------------------------------------------------------------- their arguments


def _parser() -> argparse.ArgumentParser:
    p = parser("batch", "Train and predict in AWS, on machines that exist while jobs do.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")

    add = partial(_add_command, commands)
    push = add("push", "Build the container image of this commit, and put it into ECR.")
    _add_device(push)
    push.add_argument("--image", metavar="NAME", help="an image that is built already")
    push.add_argument(
        "--build-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="for the engine's build, as in --build-option=--build-arg=BASE_IMAGE=NAME",
    )

    deploy = add("deploy", "Make or change the stack: bucket, repository, queues, roles.")
    deploy.add_argument(
        "--dry-run", action="store_true", help="print what would change, change nothing"
    )
    deploy.add_argument("--tag", help="the images that jobs run; default: those of this commit")
    deploy.add_argument(
        "--set",
        action="append",
        default=[],
        type=_assignment,
        metavar="NAME=VALUE",
        help="a parameter of segment/batch/template.yaml; the others stay as they are",
    )

    passed = "After -- come the arguments of segment.{0}, with s3:// paths."
    training = add("train", "Submit a training. " + passed.format("train"))
    _add_job(training, 48)

    predicting = add(
        "predict",
        "Submit an array of jobs that predict, and one that merges what they wrote. "
        + passed.format("predict")
        + " Arguments of segment.merge may follow a second --.",
    )
    predicting.add_argument(
        "--shards", type=whole(1), required=True, metavar="N", help=f"jobs, 1 to {SHARDS:,}"
    )
    _add_job(predicting, 6)

    status = add("status", "Show a job, or all that Batch remembers.")
    status.add_argument("job", nargs="?", metavar="JOB")
    logs = add("logs", "Print what a job has said.")
    logs.add_argument("job", metavar="JOB", help="an id; of an array's job ID:INDEX")
    logs.add_argument("--follow", action="store_true", help="go on until the job is over")
    cancel = add("cancel", "Stop a job.")
    cancel.add_argument("job", metavar="JOB")
    examine = add("doctor", "Say why jobs don't start (stuck in RUNNABLE).")
    examine.add_argument("job", nargs="?", metavar="JOB")
    return p


def _add_command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=about)
    if name != "push":
        command.add_argument("--stack", default="minicnn", metavar="NAME", help="default: minicnn")
    return command


def _add_device(to: argparse.ArgumentParser) -> None:
    to.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="default: cpu")


def _add_job(to: argparse.ArgumentParser, hours: float) -> None:
    _add_device(to)
    to.add_argument(
        "--hours", type=positive, default=hours, help=f"an attempt's most; default: {hours}"
    )
    to.add_argument("--dry-run", action="store_true", help="print the commands, submit nothing")


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE")
    return name, value
