"""Reference networks of DifNet: models, data, training, evaluation. Run from the repository root."""

from models.networks.builder import build_model, model_names
from models.networks.deeplab import Details, SimDeeplab
from models.networks.difnet import DifNet

__all__ = ["Details", "DifNet", "SimDeeplab", "build_model", "model_names"]
