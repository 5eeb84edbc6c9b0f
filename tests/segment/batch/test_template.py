"""The stack's template: by cfn-lint, by botocore's model of Batch, and by rules of our own.

Each planted error must be found; cfn-lint and botocore each overlook some (see `FOUND_BY`).
"""

import json
from pathlib import Path

import boto3
import pytest
from botocore.validate import ParamValidator
from cfnlint import lint
from cfnlint.config import ManualArgs
from cfnlint.decode.decode import decode_str

from segment.batch import stack

TEMPLATE = stack.TEMPLATE.read_text()


def by_cfn_lint(text):
    return [str(each) for each in lint(text, config=ManualArgs(regions=["eu-central-1"]))]


def by_botocore(text):
    """What AWS's own description of RegisterJobDefinition says of each job definition."""
    found = []
    model = boto3.client("batch", region_name="eu-central-1").meta.service_model
    shape = model.operation_model("RegisterJobDefinition").input_shape
    for name, job in of_type(text, "AWS::Batch::JobDefinition").items():
        request = _request(job) | {"jobDefinitionName": name}
        if errors := ParamValidator().validate(request, shape).generate_report():
            found.append(errors)
        found += _bad_names(request, shape)
    return found


def _request(of):
    """A resource's properties as the API names them; whatever refers elsewhere is some text."""
    if isinstance(of, list):
        return [_request(each) for each in of]
    if not isinstance(of, dict):
        return of
    if len(of) == 1 and next(iter(of)).startswith(("Ref", "Fn::")):
        return "reference"
    return {key[0].lower() + key[1:]: _request(value) for key, value in of.items()}


def _bad_names(value, shape):
    """Values that aren't among those an enumeration has, which botocore lets pass."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for key, inner in value.items():
            if key in shape.members:
                yield from _bad_names(inner, shape.members[key])
    elif shape.type_name == "list" and isinstance(value, list):
        for inner in value:
            yield from _bad_names(inner, shape.member)
    elif getattr(shape, "enum", None) and value != "reference":
        known = {each.lower() for each in shape.enum}
        if str(value).lower() not in known:
            yield f"{value}: expected one of {shape.enum}"


def by_our_rules(text):
    """GPUs on EC2 only, retries that match what jobs do, and nothing open to the world."""
    found = []
    for name, job in of_type(text, "AWS::Batch::JobDefinition").items():
        container = job["ContainerProperties"]
        gpu = any(need["Type"] == "GPU" for need in container["ResourceRequirements"])
        if gpu and job.get("PlatformCapabilities") != ["EC2"]:
            found.append(f"{name}: GPU jobs run on EC2 only")
        retry = job["RetryStrategy"]
        if not 1 <= retry["Attempts"] <= 10:
            found.append(f"{name}: {retry['Attempts']} attempts")
        rules = [
            {k: v for k, v in each.items() if k != "Action"} for each in retry["EvaluateOnExit"]
        ]
        retried = [each["Action"] == "RETRY" for each in retry["EvaluateOnExit"]]
        wanted = [{"OnExitCode": "143"}, {"OnStatusReason": "Host EC2*"}, {"OnReason": "*"}]
        if rules != wanted or retried != [True, True, False]:
            found.append(f"{name}: retries don't match SIGTERM, a lost host, and nothing else")
        if not container.get("ReadonlyRootFilesystem") or container.get("Privileged"):
            found.append(f"{name}: the root file system can be written")
    for name, machines in of_type(text, "AWS::Batch::ComputeEnvironment").items():
        if "FARGATE" in json.dumps(machines["ComputeResources"]["Type"]):
            found.append(f"{name}: Fargate has no GPUs")
    for kind in decode(text)["Parameters"]["Capacity"]["AllowedValues"]:
        if "FARGATE" in kind:
            found.append("Capacity: Fargate has no GPUs")
    for name, role in of_type(text, "AWS::IAM::Role").items():
        for policy in role.get("Policies", []):
            for rule in policy["PolicyDocument"]["Statement"]:
                actions = rule["Action"] if isinstance(rule["Action"], list) else [rule["Action"]]
                if any("*" in action for action in actions) or rule["Resource"] == "*":
                    found.append(f"{name}: {actions} on {rule['Resource']}")
    for name, group in of_type(text, "AWS::EC2::SecurityGroup").items():
        if "SecurityGroupIngress" in group:
            found.append(f"{name}: something may come in")
    for name, bucket in of_type(text, "AWS::S3::Bucket").items():
        if set(bucket.get("PublicAccessBlockConfiguration", {}).values()) != {True}:
            found.append(f"{name}: may become public")
    return found


def decode(text):
    template, errors = decode_str(text)
    assert not errors
    return template


def of_type(text, kind):
    resources = decode(text)["Resources"].items()
    return {name: each["Properties"] for name, each in resources if each["Type"] == kind}


CHECKS = [by_cfn_lint, by_botocore, by_our_rules]


@pytest.mark.parametrize("check", CHECKS)
def test_the_template_is_right(check):
    assert not check(TEMPLATE)


@pytest.mark.parametrize(
    ("right", "wrong", "check"),
    [
        (
            "PlatformCapabilities: [EC2] # Fargate",
            "PlatformCapabilities: [FARGATE] #",
            by_our_rules,
        ),
        ("AllowedValues: [SPOT, EC2]", "AllowedValues: [FARGATE, EC2]", by_our_rules),
        ("Attempts: 10", "Attempts: 99", by_our_rules),
        ('OnExitCode: "143"', 'OnExitCode: "1"', by_our_rules),
        ("Host EC2*", "Host*", by_our_rules),
        ('"s3:GetObject"', '"s3:*"', by_our_rules),
        ("Resource: !GetAtt Bucket.Arn", 'Resource: "*"', by_our_rules),
        ("BlockPublicAcls: true", "BlockPublicAcls: false", by_our_rules),
        ("ReadonlyRootFilesystem: true", "ReadonlyRootFilesystem: false", by_our_rules),
        ("VpcId: !Ref Vpc", "VpcId: !Ref Vpc\n      SecurityGroupIngress: []", by_our_rules),
        ("{Type: GPU,", "{Type: GPUU,", by_botocore),
        ("Type: container", "Type: contaner", by_botocore),
        ("LogDriver: awslogs", "LogDriver: awslog", by_botocore),
        ("MountPoints:", "MountPoint:", by_botocore),
        ("Command: [train, --help]", "Command: train", by_botocore),
        ("!GetAtt JobRole.Arn", "!GetAtt JobRoll.Arn", by_cfn_lint),
        ("MaxvCpus: !Ref MaxCpuVcpus", "MaxCpus: !Ref MaxCpuVcpus", by_cfn_lint),
        ("!Ref GpuInstanceTypes", "!Ref GpuTypes", by_cfn_lint),
    ],
)
def test_a_planted_error_is_found(right, wrong, check):
    assert right in TEMPLATE
    assert check(TEMPLATE.replace(right, wrong))


def test_what_is_not_asked_for_is_not_made():
    """Others' buckets, the endpoint and the budget: each only where its parameter is set."""
    document = decode(TEMPLATE)
    for name, condition in {
        "ReadOthers": "ReadsOthers",
        "S3Endpoint": "HasEndpoint",
        "Budget": "HasBudget",
    }.items():
        assert document["Resources"][name]["Condition"] == condition
    (policy,) = of_type(TEMPLATE, "AWS::IAM::Policy").values()
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert set(statement["Action"]) == {"s3:GetObject", "s3:ListBucket"}  # and writes nothing
    empty = ("ReadBuckets", "RouteTables", "BudgetEmail")
    assert all(document["Parameters"][name]["Default"] == "" for name in empty)


def test_the_template_is_in_the_package_and_small_enough_to_send():
    assert stack.TEMPLATE.parent == Path(stack.__file__).parent
    assert len(TEMPLATE) < 51_200  # CloudFormation's limit for a template in a request
