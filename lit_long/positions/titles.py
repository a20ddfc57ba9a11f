"""Names in tables and figures: a line for each of `SCHEMES` and of `TRANSFORMS`."""

TITLES = {
    "rope": "RoPE",
    "pi": "RoPE PI",
    "abf": "RoPE ABF",
    "xpos": "xPOS",
    "xpos_abf": "xPOS ABF",
    "ntk": "NTK",
    "dynamic_ntk": "Dynamic NTK",
    "ntk_by_parts": "NTK-by-parts",
    "yarn": "YaRN",
    "longrope": "LongRoPE",
    "llama3": "Llama 3",
    "p_rope": "p-RoPE",
    "power": "Power basis",
    "truncated": "Truncated basis",
    "nope": "NoPE",
    "alibi": "ALiBi",
    "randomised": "Randomised positions",
    "pose": "PoSE",
}
