"""What a run of each family leaves in metrics.json: the card's battery runs over both."""

import copy

import pytest
from sample_metrics import CLIP_RD, FAMILIES, FUSION


@pytest.fixture
def fusion_metrics():
    return copy.deepcopy(FUSION)


@pytest.fixture
def clip_rd_metrics():
    return copy.deepcopy(CLIP_RD)


@pytest.fixture(params=FAMILIES)
def metrics(request):
    return copy.deepcopy(FAMILIES[request.param])
