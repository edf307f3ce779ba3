"""Shared by the training tests: tiny's tokenizer, and interruptions of training."""

from contextlib import contextmanager

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLModel


@pytest.fixture(scope="session")
def tokenizer():
    return XLMRobertaTokenizer.from_pretrained("tiny")


@pytest.fixture
def interrupted():
    """`with interrupted(after=n):` raises KeyboardInterrupt in the n + 1st forward pass of a model in training mode."""

    @contextmanager
    def context(after):
        passes = iter(range(after + 1))

        def count(module, args):
            if isinstance(module, XLMRobertaXLModel) and module.training and next(passes) == after:
                raise KeyboardInterrupt

        handle = register_module_forward_pre_hook(count)
        try:
            with pytest.raises(KeyboardInterrupt):
                yield
        finally:
            handle.remove()

    return context
