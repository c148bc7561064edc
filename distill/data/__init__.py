"""Images for training and evaluation: opened by name, augmented, in batches."""

from .batches import Batch
from .loaders import TrainLoader, eval_loader
from .of_run import open_of_run
from .sets import open_data

__all__ = ["Batch", "TrainLoader", "eval_loader", "open_data", "open_of_run"]
