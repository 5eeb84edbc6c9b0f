"""Find buildings in aerial photographs: data, training, prediction around a U-Net."""

from typing import TYPE_CHECKING, Any

from segment import interrupts as interrupts

if TYPE_CHECKING:
    from segment.model import Model, load_model
    from segment.predict.scene import predict_scene

__all__ = ["Model", "load_model", "predict_scene"]

_HOMES = {"Model": "model", "load_model": "model", "predict_scene": "predict.scene"}


def __getattr__(name: str) -> Any:
    """Import on first use: `python -m segment.predict` must not find itself imported already."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"segment.{_HOMES[name]}"), name)
