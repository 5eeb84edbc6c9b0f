"""The parts of one service, made once by `create_app` and found from any request."""

from dataclasses import dataclass

from flask import current_app

from api.gate import Gate
from api.settings import Settings
from api.store.items import Store, open_store
from api.work.job_queue import Jobs
from api.work.predictor import Predictor


@dataclass(frozen=True)
class Service:
    settings: Settings
    gate: Gate
    predictor: Predictor
    store: Store
    jobs: Jobs


def build(settings: Settings) -> Service:
    gate = Gate(settings)
    predictor, store = Predictor(settings, gate), open_store(settings)
    return Service(settings, gate, predictor, store, Jobs(settings, predictor, store))


def service() -> Service:
    return current_app.extensions["minicnn"]
