"""A client made from the contract by a generator does what people do by hand."""

import io
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import requests
from jsonschema import Draft202012Validator
from serving import decode, scene, wait_for

from api.routes.spec import SCHEMAS
from segment.predict.scene import predict_scene


@pytest.fixture(scope="module")
def generated(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    (folder / "openapi.json").write_text(server.get("/openapi.json").text)
    command = [Path(sys.executable).with_name("openapi-python-client"), "generate"]
    command += ["--path", "openapi.json", "--meta", "none", "--output-path", "buildings_client"]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert "Cannot parse" not in told.stdout + told.stderr, told.stdout
    sys.path.insert(0, str(folder))
    yield lambda name: import_module(f"buildings_client.{name}")
    sys.path.remove(str(folder))


def test_the_contract_says_where_the_service_is(server):
    assert server.get("/openapi.json").json()["servers"] == [{"url": server.url}]


def test_behind_a_prefix(new_server):
    with new_server(PROXIES=1) as server:
        headers = {"X-Forwarded-Prefix": "/roofs", "X-Forwarded-Host": "maps.example"}
        told = requests.get(f"{server.url}/openapi.json", headers=headers, timeout=9).json()
        assert told["servers"] == [{"url": "http://maps.example/roofs"}]


def test_a_mask_an_item_and_a_job(generated, server, model, tmp_path):
    (tmp_path / "scene.tif").write_bytes(scene())
    mask, _ = predict_scene(model, tmp_path / "scene.tif")
    types, models = generated("types"), generated("models")
    with generated("client").Client(base_url=server.url) as client:
        file = types.File(io.BytesIO(scene()), "scene.tif", "image/tiff")

        body = models.FindBuildingsBody(file=file)
        answer = generated("api.masks.find_buildings").sync_detailed(client=client, body=body)
        assert answer.status_code == 200
        assert np.array_equal(decode(answer.content)[0], mask)
        assert np.array_equal(decode(answer.parsed.payload.read())[0], mask)

        file = types.File(io.BytesIO(scene()), "scene.tif", "image/tiff")
        put = generated("api.items.put_item")
        stored = put.sync_detailed("made", client=client, body=models.PutItemFilesBody(file=file))
        assert stored.status_code == 201 and stored.parsed.id == "made"

        file = types.File(io.BytesIO(scene(seed=3)), "scene.tif", "image/tiff")
        begun = generated("api.masks.find_buildings").sync(
            client=client, body=models.FindBuildingsBody(file=file), prefer="respond-async"
        )
        job = generated("api.jobs.get_job")
        wait_for(lambda: job.sync(begun.id, client=client).status == "successful", 30)
        result = generated("api.jobs.get_job_result").sync(
            begun.id, client=client, response_type=models.GetJobResultResponseType.FILE
        )
        assert decode(result.payload.read())[0].shape == mask.shape
        server.delete("/items/made")


def test_the_examples_of_the_contract_are_valid():
    """Each by its schema; and every body of JSON has one."""
    for name, schema in SCHEMAS.items():
        document = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": SCHEMAS}}
        for example in schema.get("examples", []):
            assert not list(Draft202012Validator(document).iter_errors(example)), name
    assert {name for name, schema in SCHEMAS.items() if "examples" not in schema} == {"Any"}
