from pathlib import Path

import pytest
from hosts import missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Mark all tests in this folder with ``cluster``, the marker of tests that need simulated hosts."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("cluster")


@pytest.fixture(scope="session", autouse=True)
def require_hosts():
    if reason := missing():
        pytest.skip(reason)
