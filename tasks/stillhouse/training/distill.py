"""A recipe's training from Python, in one process, without Airflow, MLflow or an object store."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from stillhouse.contract import HistoryPoint, Progress
from stillhouse.data import freeze, load_frozen, load_tables, reject_if_critical
from stillhouse.data.suites import validate
from stillhouse.losses import Arm
from stillhouse.models import load_model, load_tokenizer, obtain_model_folder, save_model
from stillhouse.recipe import Recipe
from stillhouse.store import fetch_source
from stillhouse.training.engine import TrainingOutcome

logger = logging.getLogger(__name__)
