"""Lightning callbacks."""

from lightning_app.callbacks.averaging import AveragedWeights
from lightning_app.callbacks.controller import HeadController
from lightning_app.callbacks.dashboard import Dashboard
from lightning_app.callbacks.plasticity import PlasticitySchedule
from lightning_app.callbacks.predictions import PredictionWriter
from lightning_app.callbacks.progress import ProgressLine
from lightning_app.callbacks.projector import Projector
from lightning_app.callbacks.random_state import RandomState
from lightning_app.callbacks.run_log import RunLog
from lightning_app.callbacks.samples import Samples
from lightning_app.callbacks.throughput import Throughput

__all__ = [
    "AveragedWeights",
    "Dashboard",
    "HeadController",
    "PlasticitySchedule",
    "PredictionWriter",
    "ProgressLine",
    "Projector",
    "RandomState",
    "RunLog",
    "Samples",
    "Throughput",
]
