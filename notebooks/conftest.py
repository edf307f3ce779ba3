"""Notebook 11 runs several ranks, for which torch must not be older than xlmrxl_min/scale/mesh.py says."""

import pytest
import torch

from xlmrxl_min.scale.mesh import is_torch_too_old


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if is_torch_too_old():
        for item in items:
            if item.path.name == "11_many_gpus.ipynb":
                item.add_marker(pytest.mark.skip(reason=f"torch {torch.__version__} is too old for several ranks"))
