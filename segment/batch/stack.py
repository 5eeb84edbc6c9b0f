"""The stack: what `template.yaml` makes of an AWS account, made and changed by CloudFormation."""

import re
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segment.batch.images import has_repository
from segment.errors import InputError

TEMPLATE = Path(__file__).with_name("template.yaml")


def resources(aws: Any, name: str) -> dict[str, str]:
    """Names or ARNs of what the stack made, by their names in the template."""
    cloud = aws.client("cloudformation")
    stack = _find(cloud, name)
    if stack is None or stack["StackStatus"] == "REVIEW_IN_PROGRESS":
        raise InputError(f"no stack {name} in {aws.region_name}: make it with segment.batch deploy")
    made = cloud.describe_stack_resources(StackName=name)["StackResources"]
    return {each["LogicalResourceId"]: each.get("PhysicalResourceId", "") for each in made}


def deploy(aws: Any, name: str, given: Mapping[str, str], dry_run: bool) -> None:
    """Make the stack, or change it to what the template and `given` parameters say.

    Prints every change before it is made; with `dry_run` makes none. Done twice, the second time
    finds nothing to change. Parameters that are not given stay as they are.
    """
    cloud = aws.client("cloudformation")
    stack = _find(cloud, name)
    new = stack is None or stack["StackStatus"] == "REVIEW_IN_PROGRESS"  # none, or only planned
    if stack and not new and not stack["StackStatus"].endswith("_COMPLETE"):
        raise InputError(f"stack {name} is in {stack['StackStatus']}: wait until it has settled")
    if stack and stack["StackStatus"] in ("ROLLBACK_COMPLETE", "DELETE_FAILED"):
        raise InputError(
            f"stack {name} could not be made ({stack['StackStatus']}): "
            f"aws cloudformation delete-stack --stack-name {name}, then deploy again"
        )
    parameters = _first(aws, given) if new else _changed(stack, given)
    plan = {"StackName": name, "ChangeSetName": f"deploy-{uuid.uuid4().hex}"}
    changes = _changes(cloud, plan, new, parameters)
    for change in changes:
        what = change["ResourceChange"]
        anew = " (replaced)" if what.get("Replacement") == "True" else ""
        print(f"{what['Action']:8}{what['ResourceType']:32}{what['LogicalResourceId']}{anew}")
    if not changes:
        print(f"stack {name}: nothing to change")
    elif dry_run:
        _forget(cloud, plan, new)
    else:
        cloud.execute_change_set(**plan)
        _settle(cloud, name)
    if not dry_run:
        print(f"bucket: s3://{resources(aws, name)['Bucket']}")


def print_template() -> None:
    """Print what a new stack has, by the template alone: no account is asked."""
    made = TEMPLATE.read_text().partition("\nResources:\n")[2].partition("\nOutputs:\n")[0]
    for block in re.split(r"^  (?=\w+:)", made, flags=re.MULTILINE):
        kind = re.search(r"^    Type: (AWS::\S+)", block, re.MULTILINE)
        condition = re.search(r"^    Condition: (\w+)", block, re.MULTILINE)
        if kind:
            only = f" (if {condition[1]})" if condition else ""
            print(f"{'Add':8}{kind[1]:32}{block.partition(':')[0]}{only}")


def _find(cloud: Any, name: str) -> Any:
    """What CloudFormation says of a stack, or None."""
    try:
        return cloud.describe_stacks(StackName=name)["Stacks"][0]
    except cloud.exceptions.ClientError as error:
        if "does not exist" in str(error):
            return None
        raise


def _first(aws: Any, given: Mapping[str, str]) -> list[dict[str, Any]]:
    """A new stack's parameters: the account's default network and, if there is, its repository."""
    known = {"CreateRepository": "false" if has_repository(aws.client("ecr")) else "true"}
    if not {"Vpc", "Subnets"} <= set(given):
        known |= _default_network(aws.client("ec2"))
    return [
        {"ParameterKey": key, "ParameterValue": value} for key, value in {**known, **given}.items()
    ]


def _default_network(ec2: Any) -> dict[str, str]:
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise InputError(
            "the account has no default VPC: name a network with --set Vpc=ID --set Subnets=ID,ID"
        )
    vpc = vpcs[0]["VpcId"]
    subnets = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    return {"Vpc": vpc, "Subnets": ",".join(sorted(subnet["SubnetId"] for subnet in subnets))}


def _changed(stack: Any, given: Mapping[str, str]) -> list[dict[str, Any]]:
    """A stack's parameters: those given, and the others as they were."""
    kept = {parameter["ParameterKey"] for parameter in stack["Parameters"]} - set(given)
    return [{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()] + [
        {"ParameterKey": key, "UsePreviousValue": True} for key in sorted(kept)
    ]


def _changes(
    cloud: Any, plan: dict[str, str], new: bool, parameters: list[dict[str, Any]]
) -> list[Any]:
    """Have CloudFormation work out what would change; InputError if it can't."""
    try:
        cloud.create_change_set(
            **plan,
            ChangeSetType="CREATE" if new else "UPDATE",
            TemplateBody=TEMPLATE.read_text(),
            Parameters=parameters,
            Capabilities=["CAPABILITY_IAM"],
            Tags=[{"Key": "project", "Value": "minicnn"}],
        )
        planned = _wait(lambda: cloud.describe_change_set(**plan), lambda state: state["Status"])
    except cloud.exceptions.ClientError as error:
        if "No updates are to be performed" in str(error):
            return []
        raise
    if planned["Status"] == "CREATE_COMPLETE":
        return list(planned["Changes"])
    _forget(cloud, plan, new)
    reason = planned.get("StatusReason", planned["Status"])
    if "didn't contain changes" in reason or "No updates are to be performed" in reason:
        return []
    raise InputError(f"stack {plan['StackName']}: {reason}")


def _forget(cloud: Any, plan: dict[str, str], new: bool) -> None:
    """Leave no trace of a plan: a new stack exists as its plan only."""
    cloud.delete_change_set(**plan)
    if new:
        cloud.delete_stack(StackName=plan["StackName"])


def _settle(cloud: Any, name: str) -> None:
    """Wait until the changes are made; InputError with the first thing that went wrong."""
    done = _wait(lambda: _find(cloud, name), lambda state: state["StackStatus"])
    if done["StackStatus"] in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        print(f"stack {name}: {done['StackStatus']}")
        return
    events = cloud.describe_stack_events(StackName=name)["StackEvents"]  # the latest first
    failed = [event for event in events if event["ResourceStatus"].endswith("_FAILED")]
    last = failed[-1] if failed else {}
    about = f"{last.get('LogicalResourceId')}: {last.get('ResourceStatusReason')}"
    raise InputError(f"stack {name} is in {done['StackStatus']}: {about}")


def _wait(look: Callable[[], Any], status: Callable[[Any], str], seconds: float = 3) -> Any:
    """Look again and again, until nothing is pending or in progress."""
    while status(state := look()).endswith(("_PENDING", "_PROGRESS")):
        time.sleep(seconds)
    return state
