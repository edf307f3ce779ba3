"""Notebook 11 runs several ranks, for which torch must not be older than xlmrxl_min/scale/mesh.py says."""

import pytest
import torch

from xlmrxl_min.scale.mesh import MIN_TORCH


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if tuple(map(int, torch.__version__.split(".")[:2])) < MIN_TORCH:
        for item in items:
            if item.path.name == "11_many_gpus.ipynb":
                item.add_marker(pytest.mark.skip(reason=f"torch {torch.__version__} is too old for several ranks"))
