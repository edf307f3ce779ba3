"""Shared by all tests: one thread of randomness, and the largest parity error, printed at the end."""

import pytest
import torch

PARITY = pytest.StashKey[dict]()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def parity(request):
    """Call with an error: it is asserted to be within float32's 1e-5, and the largest is reported at the end."""
    errors = request.config.stash.setdefault(PARITY, {})

    def within(error, limit=1e-5):
        errors[request.node.nodeid] = max(error, errors.get(request.node.nodeid, 0.0))
        assert error < limit

    return within


def pytest_terminal_summary(terminalreporter, config):
    errors = config.stash.get(PARITY, {})
    if errors:
        worst = max(errors, key=errors.get)
        terminalreporter.write_line(
            f"largest difference from transformers over {len(errors)} cases: {errors[worst]:.1e} ({worst})"
        )


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none here")
