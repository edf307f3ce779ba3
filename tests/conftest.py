"""Shared by all tests: one thread of randomness, and the largest parity error, printed at the end."""

import os
import shutil

import pytest
import torch

from xlmrxl_min import XLMRobertaTokenizer, XLMRobertaXLForMaskedLM

if "PYTEST_XDIST_WORKER" in os.environ:  # a process per core: more threads than one would wait for each other
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the notebooks' kernels


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer():
    return XLMRobertaTokenizer.from_pretrained("tiny")


@pytest.fixture(scope="module")
def tiny():
    return XLMRobertaXLForMaskedLM.from_pretrained("tiny")


@pytest.fixture(scope="session")
def browser():
    """A real browser; its tests are skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium or Chrome")
    with api.sync_playwright() as playwright, playwright.chromium.launch(executable_path=program) as running:
        yield running


@pytest.fixture
def parity(request):
    """Call with an error: it is asserted to be within float32's 1e-5, and the largest is reported at the end."""

    def within(error, limit=1e-5):
        request.node.user_properties.append(("parity", error))
        assert error < limit

    return within


def pytest_terminal_summary(terminalreporter):
    errors: dict[str, float] = {}
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "parity":
                errors[report.nodeid] = max(value, errors.get(report.nodeid, 0.0))
    if errors:
        worst = max(errors, key=errors.get)
        terminalreporter.write_line(
            f"largest difference from transformers over {len(errors)} cases: {errors[worst]:.1e} ({worst})"
        )


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and there is none here")
