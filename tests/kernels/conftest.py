"""Every choice that the CPU implementations make by the processor, on every processor: each is right anywhere."""

import pytest

from unimo_ds.kernels import linear

_CHOICES = {
    "torch": (False, False),
    "bf16 by fp32": (False, True),
    "fp32 by oneDNN": (True, False),
    "fp32 by oneDNN, bf16 by fp32": (True, True),
}


@pytest.fixture(params=_CHOICES.values(), ids=_CHOICES)
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs with each choice."""
    by_onednn, imitated = request.param
    monkeypatch.setattr(linear, "FLOAT32_BY_ONEDNN", by_onednn and linear.ONEDNN)
    monkeypatch.setattr(linear, "BFLOAT16_IMITATED", imitated)
