"""AWS as far as moto plays it, and the template as far as moto can read it."""

import re

from segment.batch import stack

TAG = "0.1.0-0123456789ab"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


def template_for_moto():
    """The template without what moto 5 lacks, and with what it, unlike AWS, insists on."""
    text = stack.TEMPLATE.read_text()
    for pattern, moto in (
        (r"  BucketPolicy:\n(    .*\n|\n)+", ""),
        (r"  (ReadOthers|S3Endpoint|Budget):.*\n(    .*\n|\n)+", ""),  # it makes them unasked
        (r"(      Type: MANAGED\n)", r"\1      ServiceRole: !GetAtt InstanceRole.Arn\n"),
        (r"!Ref ((Cpu|Gpu)InstanceTypes)\n", r"!Split [',', !Ref \1]\n"),
    ):
        text, changes = re.subn(pattern, moto, text)
        assert changes, pattern
    return text
