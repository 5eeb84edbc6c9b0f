"""Find buildings in aerial photographs: data, training, prediction around a U-Net."""

from segment.model import Model, load_model
from segment.predict import predict_scene

__all__ = ["Model", "load_model", "predict_scene"]
