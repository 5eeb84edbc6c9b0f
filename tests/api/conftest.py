"""One server for all tests that leave it as it was; those that kill or fill one start their own."""

import pytest
from serving import Server

from segment.model import Model, ModelInfo, load_model, save_model
from segment.unet import UNet


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """A small untrained network whose opinions are strong: quick, and never all one colour."""
    net = UNet(widths=(4, 8, 8), seed=5)
    net.head.params["w"] *= 100
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    save_model(path, net, ModelInfo(pixel_size=0.3, threshold=0.5))
    return path


@pytest.fixture(scope="session")
def model(model_file) -> Model:
    return load_model(model_file)


@pytest.fixture(scope="session")
def server(model_file, tmp_path_factory):
    with Server(tmp_path_factory.mktemp("service") / "store", model_file) as server:
        yield server


@pytest.fixture
def new_server(model_file, tmp_path):
    """`new_server(TOKEN="x")`: a server of the test's own, to be entered with `with`."""
    return lambda **settings: Server(tmp_path / "store", model_file, **settings)
