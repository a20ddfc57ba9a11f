"""One row per scheme: settings, and inverse frequencies worked out elsewhere.

The values are for heads of 128 components and a live length of 8,192 tokens, to 7 digits. Those of PI, dynamic NTK, YaRN, Llama 3.1
and p-RoPE were printed by transformers 5.23; the others are from the papers' formulas by hand (paper.md §4.12). LongRoPE's factors
are arbitrary: 1 + j/64 up to the original context, 1 + j/8 beyond.
"""

from __future__ import annotations

SHORT = [1 + j / 64 for j in range(64)]
LONG = [1 + j / 8 for j in range(64)]

ROPE = {0: 1.0, 1: 0.8659643, 16: 0.1, 31: 1.154782e-2, 32: 1e-2, 40: 3.162278e-3, 46: 1.333521e-3, 63: 1.154782e-4}
ABF = {0: 1.0, 1: 0.8146172, 16: 3.760603e-2, 31: 1.736047e-3, 32: 1.414214e-3, 40: 2.742482e-4, 46: 8.014295e-5, 63: 2.455141e-6}
PI = {0: 0.125, 1: 0.1082455, 16: 1.25e-2, 31: 1.443477e-3, 32: 1.25e-3, 40: 3.952847e-4, 46: 1.666902e-4, 63: 1.443477e-5}
NTK = {0: 1.0, 1: 0.8378480, 16: 5.897172e-2, 31: 4.150710e-3, 32: 3.477664e-3, 40: 8.445192e-4, 46: 2.921467e-4, 63: 1.443477e-5}
DYNAMIC = {
    0: 1.0,
    1: 0.8509943,
    16: 7.565303e-2,
    31: 6.725523e-3,
    32: 5.723382e-3,
    40: 1.574222e-3,
    46: 5.978961e-4,
    63: 3.849273e-5,
}
YARN = {0: 1.0, 1: 0.8659643, 16: 0.1, 31: 7.272906e-3, 32: 5.961538e-3, 40: 1.033822e-3, 46: 1.666902e-4, 63: 1.443477e-5}
PARTS = {0: 1.0, 1: 0.8659643, 16: 0.1, 31: 3.571259e-3, 32: 2.807778e-3, 40: 4.900305e-4, 46: 1.666902e-4, 63: 1.443477e-5}
LLAMA3 = {
    0: 1.0,
    1: 0.8146172,
    16: 3.760603e-2,
    31: 8.567514e-4,
    32: 5.248462e-4,
    40: 3.428102e-5,
    46: 1.001787e-5,
    63: 3.068926e-7,
}
POWER = {
    0: 1.0,
    1: 0.8591723,
    16: 8.660254e-2,
    31: 8.292147e-3,
    32: 7.071068e-3,
    40: 1.936492e-3,
    46: 7.072065e-4,
    63: 1.443477e-5,
}
LONGROPE = {0: 1.0, 1: 0.8659643 / 1.125, 16: 0.1 / 3, 32: 1e-2 / 5, 40: 3.162278e-3 / 6, 63: 1.154782e-4 / 8.875}

# settings, {pair: radians per position}, attention factor, neutral settings (those of RoPE)
TABLE = [
    ({"scheme": "rope", "base": 10_000}, ROPE, 1, {}),
    ({"scheme": "pi", "base": 10_000, "factor": 8}, PI, 1, {"factor": 1}),
    ({"scheme": "abf", "base": 500_000}, ABF, 1, {"base": 10_000}),
    ({"scheme": "xpos", "base": 10_000, "centre": 1024}, ROPE, 1, {"scale_base": 1e12}),
    ({"scheme": "xpos_abf", "base": 500_000, "centre": 1024}, ABF, 1, {"base": 10_000, "scale_base": 1e12}),
    ({"scheme": "ntk", "base": 10_000, "factor": 8}, NTK, 1, {"factor": 1}),
    ({"scheme": "dynamic_ntk", "base": 10_000, "factor": 2, "original": 4096}, DYNAMIC, 1, {"original": 8192}),
    ({"scheme": "ntk_by_parts", "base": 10_000, "factor": 8, "original": 4096}, PARTS, 1, {"factor": 1}),
    ({"scheme": "yarn", "base": 10_000, "factor": 8, "original": 4096}, YARN, 1.2079442, {"factor": 1}),
    (
        {"scheme": "longrope", "base": 10_000, "factor": 8, "original": 4096, "short_factors": SHORT, "long_factors": LONG},
        LONGROPE,
        1.1180340,
        {"factor": 1, "short_factors": [1] * 64, "long_factors": [1] * 64},
    ),
    ({"scheme": "llama3", "base": 500_000, "factor": 8, "original": 8192}, LLAMA3, 1, {"base": 10_000, "factor": 1}),
    ({"scheme": "p_rope", "base": 10_000, "fraction": 0.75}, ROPE | {47: 10_000 ** (-47 / 64), 48: 0, 63: 0}, 1, {"fraction": 1}),
    ({"scheme": "power", "base": 10_000, "k": 0.5}, POWER, 1, {"k": 0}),
    ({"scheme": "truncated", "base": 10_000, "truncate": 2048}, ROPE | {46: 1.917476e-4, 63: 0}, 1, {"truncate": 10**9}),
    ({"scheme": "nope"}, {0: 0, 1: 0, 63: 0}, 1, None),
    ({"scheme": "alibi"}, {0: 0, 1: 0, 63: 0}, 1, None),
]
SETTINGS = {row[0]["scheme"]: row[0] for row in TABLE}
KEEPS_NORMS = [scheme for scheme in SETTINGS if scheme not in ("xpos", "xpos_abf", "yarn", "longrope")]
