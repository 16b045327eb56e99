"""The training loop in parts: configuration, run folder, processes, the loop itself."""

from models.training.config import TrainConfig
from models.training.trainer import Stopped, Trainer, TrainingDiverged, Validate

__all__ = ["Stopped", "TrainConfig", "Trainer", "TrainingDiverged", "Validate"]
