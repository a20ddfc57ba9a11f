"""Every scheme that transformers knows against its own functions, over a grid of settings and in both config layouts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lit_long.positions import build


def new_layout(head_dim, original, length, **parameters):
    """transformers ≥ 5: all in ``rope_parameters``."""
    return LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        head_dim=head_dim,
        max_position_embeddings=original,
        rope_parameters=parameters,
    )


def old_layout(head_dim, original, length, *, rope_theta, **scaling):
    """transformers 4: ``rope_scaling`` beside ``rope_theta``, as in most published config.json files."""
    return LlamaConfig.from_dict(
        {
            "model_type": "llama",
            "hidden_size": head_dim,
            "num_attention_heads": 1,
            "head_dim": head_dim,
            "max_position_embeddings": original,
            "rope_theta": rope_theta,
            "rope_scaling": scaling,
        }
    )


def factors(head_dim, slope):
    return [1 + slope * j for j in range(head_dim // 2)]


# our scheme → its name there, our settings and theirs
CASES = {
    "pi": ("linear", lambda d, f, L: ({"factor": f}, {"factor": f})),
    "dynamic_ntk": ("dynamic", lambda d, f, L: ({"factor": f, "original": L}, {"factor": f})),
    "yarn": ("yarn", lambda d, f, L: ({"factor": f, "original": L}, {"factor": f, "original_max_position_embeddings": L})),
    "longrope": (
        "longrope",
        lambda d, f, L: (
            {"factor": f, "original": L, "short_factors": factors(d, 0.01), "long_factors": factors(d, 0.2)},
            {
                "factor": f,
                "original_max_position_embeddings": L,
                "short_factor": factors(d, 0.01),
                "long_factor": factors(d, 0.2),
            },
        ),
    ),
    "llama3": (
        "llama3",
        lambda d, f, L: (
            {"factor": f, "original": L},
            {"factor": f, "original_max_position_embeddings": L, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        ),
    ),
    "p_rope": ("proportional", lambda d, f, L: ({"fraction": 1 / f}, {"partial_rotary_factor": 1 / f})),
}


@pytest.mark.parametrize("layout", [new_layout, old_layout])
@pytest.mark.parametrize("scheme", CASES)
def test_frequencies_are_transformers_own(scheme, layout):
    name, settings = CASES[scheme]
    for head_dim, base, factor, original, stretch in itertools.product(
        [32, 64, 80, 128], [625.0, 10_000.0, 500_000.0], [1.5, 4.0, 8.0], [128, 4096], [0.5, 1, 8]
    ):
        length = int(stretch * original)
        ours, theirs = settings(head_dim, factor, original)
        config = layout(head_dim, original, length, rope_type=name, rope_theta=base, **theirs)
        expected, attention = ROPE_INIT_FUNCTIONS[name](config, torch.device("cpu"), seq_len=length)
        encoder = build({"scheme": scheme, "base": base} | ours, head_dim)
        case = f"{head_dim=} {base=} {factor=} {original=} {length=}"
        np.testing.assert_allclose(encoder.inverse_frequencies(length), expected.double().numpy(), rtol=3e-6, err_msg=case)
        assert encoder.attention_factor(length) == pytest.approx(attention, rel=1e-12), case


def test_every_scheme_of_transformers_is_covered():
    assert {name for name, _ in CASES.values()} == set(ROPE_INIT_FUNCTIONS)
