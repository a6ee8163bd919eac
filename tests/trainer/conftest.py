"""Every test starts and ends without Accelerate's state, on the CPU."""

import pytest


@pytest.fixture(autouse=True)
def start_fresh(fresh_accelerate_state):
    """See `fresh_accelerate_state`."""
