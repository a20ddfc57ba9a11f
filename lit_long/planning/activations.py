"""What a block keeps of each token between its forward and its backward pass, tensor by tensor, in bytes on one GPU.

Counted is eager mode as the model is written (lit_long/model/llama.py); torch.compile fuses some of it away. What a kernel keeps differs:

    cuda   fused RMSNorm keeps its input and a number a token; FlashAttention q, k, v, its output and a number per head and token
    cpu    RMSNorm is made of simple operations, which keep an fp32 input and a normalised fp32 copy; attention as on cuda

Under autocast (bf16-mixed) the stream is in fp32, and each of q, k, v, gate and up keeps a bf16 copy of its own of the normalised stream, and
one of its weight. Rotation keeps nothing but tables that the layers of a group share. Under context parallelism attention keeps the keys and values of
the whole sequence. Tensor parallelism divides what lies between two of its products; the stream is whole on each rank.
"""

from __future__ import annotations

from lit_long.planning.job import Job


def norm(job: Job) -> float:
    """RMSNorm of the stream with its input; its output not counted."""
    return norm_of(job, job.model.d_model, job.widths.stream)


def norm_of(job: Job, numbers: float, width: int, vectors: float = 1) -> float:
    """RMSNorm of so many numbers of ``width`` bytes, in ``vectors`` that are normalised by themselves."""
    if job.kernels == "cuda":
        return width * numbers + 4 * vectors
    return 8 * numbers + 4 * vectors  # an fp32 input is its own copy


def heads_norm(job: Job) -> float:
    """The norms of queries and keys (model.qk_norm)."""
    model, tensor = job.model, job.mesh.tensor
    heads = (model.n_heads + model.n_kv_heads) / tensor
    vectors = {"none": 0, "head": heads, "layer": 2}[model.qk_norm]
    return norm_of(job, heads * model.head_dim, job.widths.computed, vectors) if vectors else 0.0


def pieces(job: Job) -> dict[str, float]:
    """What a block keeps when nothing is computed again."""
    model, width, tensor = job.model, job.widths.computed, job.mesh.tensor
    queries, keys = model.n_heads * model.head_dim / tensor, model.n_kv_heads * model.head_dim / tensor
    gated = model.activation == "swiglu"
    copies = 2 if job.widths.stream == width else 5 if gated else 4
    blocks = 2 * (norm(job) if model.norm == "pre" else norm_of(job, model.d_model, width))
    return {
        "norms": blocks + heads_norm(job),
        "normalised": copies * width * model.d_model,
        "queries": width * queries,
        "keys and values": 2 * width * keys * job.mesh.context,
        "attention": width * queries + 4 * model.n_heads / tensor,
        # gate, up, silu(gate), and the product of the last two; or relu(up) and its square
        "feed-forward": (4 if gated else 2) * width * model.d_ffn / tensor,
    }


def block_input(job: Job) -> float:
    """The stream as it comes in: all that full checkpointing keeps."""
    return job.widths.stream * job.model.d_model


def kept(job: Job) -> float:
    """What a block keeps from forward to backward, as ``checkpointing`` says (training/parallel.py)."""
    if job.checkpointing == "none":
        return sum(pieces(job).values())
    if job.checkpointing == "attention":
        return block_input(job) + pieces(job)["attention"]
    return block_input(job) + (sum(selected(job)) if job.checkpointing == "selective" else 0.0)


def selected(job: Job) -> tuple[float, float]:
    """What selective checkpointing keeps besides, and of it what the block would keep anyway.

    It keeps what attention gives, and every second product in their order: q (not yet rotated), v, gate and down; or q, v and up. A norm keeps
    its input anyway, unless that is a copy.
    """
    model, width, tensor = job.model, job.widths.computed, job.mesh.tensor
    queries, hidden = width * model.n_heads * model.head_dim / tensor, width * model.d_ffn / tensor
    here = {"q": queries, "down": width * model.d_model} if model.activation == "swiglu" else {"q": queries, "up": hidden}
    anyway = queries + width * model.n_kv_heads * model.head_dim / tensor + 4 * model.n_heads / tensor
    anyway += hidden if model.activation == "swiglu" else 0.0
    if job.kernels == "cuda" or width == 4:
        anyway += here.pop("q") if model.qk_norm != "none" else 0.0
        anyway += here.pop("down", 0.0) if model.norm == "post" else 0.0
    return sum(here.values()), anyway


def computed_again(job: Job) -> float:
    """What comes back while one block is in its backward pass, beyond what it had kept."""
    if job.checkpointing == "none":
        return 0.0
    whole = sum(pieces(job).values())
    if job.kernels == "cuda" or job.widths.stream == 4:
        whole -= block_input(job)  # the first norm's input is the block's, which was kept
    if job.checkpointing == "attention":
        whole -= pieces(job)["attention"]
    if job.checkpointing == "selective":
        whole -= selected(job)[1]
        if job.model.activation == "relu2":  # up goes when its ReLU is there
            whole -= job.widths.computed * job.model.d_ffn / job.mesh.tensor
    return whole


def gradients(job: Job) -> float:
    """Gradients at the widest point of a block's backward pass, beyond what is kept and computed again.

    That is in the feed-forward part, where those of the stream, of the product, of silu(gate) and of up exist and the product itself is gone; or,
    where matrices are narrow, in the norm before it, after the feed-forward part and its inputs are gone. A square's backward makes twice its input
    besides its gradient.
    """
    model, width = job.model, job.widths.computed
    hidden = width * model.d_ffn / job.mesh.tensor
    inputs = (1 if job.widths.stream == width else 2) * width * model.d_model
    made = (2 if model.activation == "swiglu" else 3) * hidden
    return max(job.widths.stream * model.d_model + made, norm_gradients(job) - inputs - 4 * hidden)


def norm_gradients(job: Job) -> float:
    """Gradients in a norm's backward pass: what comes in, what goes out, and the stream's; a CPU's simple operations make several more (counted in
    runs of models that are nearly nothing but norms)."""
    if job.kernels == "cuda":
        return 3 * job.widths.stream * job.model.d_model
    return (16 if job.widths.stream == 4 else 18) * job.model.d_model


def tables(job: Job) -> float:
    """The rotation: fp32 cosines for all components, sines for half of them. One set for each group of layers."""
    return 6.0 * job.model.head_dim * (len(set(job.layers)) or 1)
