"""Text from a model: prompts are read into a cache of keys and values, then every step adds a token to each row.

`generate` works on tokens, `generate_text` on text; `prepack` makes the steps of a model on a CPU faster.
"""

from lit_long.generation.decode import PREFILL_CHUNK, Sequences, generate
from lit_long.generation.prepacking import prepack
from lit_long.generation.sampling import Sampler
from lit_long.generation.text import Continuation, continue_tokens, generate_text

__all__ = ["PREFILL_CHUNK", "Continuation", "Sampler", "Sequences", "continue_tokens", "generate", "generate_text", "prepack"]
