from pathlib import Path

import pytest
from hosts import missing

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """All that is here needs hosts."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("cluster")


@pytest.fixture(scope="session", autouse=True)
def hosts_can_be_had():
    if reason := missing():
        pytest.skip(reason)
