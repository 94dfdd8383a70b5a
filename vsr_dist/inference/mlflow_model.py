"""The code of a generator in MLflow: `mlflow.pyfunc.load_model` runs this file and finds the weights beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch


class GeneratorModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """float32 clips (B, T, 3, H, W) in [0, 1] in; the enlarged clips (B, T, 3, sH, sW) out."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401 - MLflow has no types
        """Load the weights, with an installed vsr-dist or with the source that was packed with them."""
        sys.path.append(context.artifacts["source"])
        from vsr_dist.inference.generator_io import load_generator  # noqa: PLC0415

        self.generator, _ = load_generator(Path(context.artifacts["weights"]))

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> np.ndarray:  # noqa: ANN401
        """Enlarge a batch of clips."""
        del context, params
        with torch.inference_mode():
            enlarged_BTCHW: np.ndarray = self.generator(torch.from_numpy(model_input)).numpy()
        return enlarged_BTCHW


mlflow.models.set_model(GeneratorModel())
