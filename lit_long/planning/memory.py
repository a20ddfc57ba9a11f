"""Memory of one GPU: the bytes of all tensors at the moments of an update where they can be at their most.

    loss            the forward pass has ended, and a chunk's logits and all that is made of them exist
    last norm       its backward pass, the first of all
    block           a block's backward pass at its widest, in the feed-forward part: of the last block, of the one before, and of the first
    block's end     all gradients of a block exist, and its parameters are still gathered
    root            gradients of embedding and head, whole, on their way to being reduced
    step            AdamW: no activations

Parameters, gradients and AdamW's two moments are in the parameters' precision, spread by FSDP2 over shard × context ranks, and by tensor
parallelism. (Muon, which has one moment for hidden matrices, is planned as if it had two.) FSDP2 gathers a block (twice in all: as it came, and
parameter by parameter), and in backward the next one meanwhile; embedding and head stay gathered from the beginning of the forward pass.
Gradients that more than one micro-batch adds up stay whole on every rank unless accumulate=sharded (see Job). Not counted: what is in no
tensor, such as CUDA's context and the allocator's fragments (hardware.py).

The formulas hold for tensors as torch counts them; training/memory_trace.py runs the real model to compare.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_long.planning import activations
from lit_long.planning.flops import block_vectors, block_weights
from lit_long.planning.job import Job

BYTES_A_LOGIT = 10  # as model/loss.py has it
FEWEST = 16
BATCH = 32  # bytes a token: tokens, targets, document_ids and positions, int64
PARTS = ("parameters", "gradients", "optimizer", "activations", "logits", "gathered", "communication")


@dataclass(frozen=True)
class Moment:
    """Bytes of each kind at one moment."""

    name: str
    parameters: float
    optimizer: float
    gradients: float
    activations: float = 0.0
    logits: float = 0.0
    gathered: float = 0.0
    communication: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, part) for part in PARTS)


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters that one tensor-parallel rank holds, before sharding."""

    block: float
    products: float  # of a block, in matrix products
    down: float  # of the down projection
    root: float  # embedding, head unless they are tied, and the last norm
    head: float
    layers: int

    @property
    def all(self) -> float:
        return self.layers * self.block + self.root


def weights(job: Job) -> Weights:
    model, tensor = job.model, job.mesh.tensor
    products, (vectors, shared) = block_weights(model) / tensor, block_vectors(model)
    head = model.vocab_size * model.d_model / tensor
    return Weights(
        block=products + vectors + shared / tensor,
        products=products,
        down=model.d_ffn * model.d_model / tensor,
        root=head * (1 if model.tie_embeddings else 2) + model.d_model,
        head=head,
        layers=model.n_layers,
    )


def peak(job: Job) -> Moment:
    """The moment that decides whether the job fits."""
    return max(moments(job), key=lambda moment: moment.total)


def moments(job: Job) -> list[Moment]:
    """All of them, in their order."""
    layers = job.model.n_layers
    blocks = [block(job, done) for done in sorted({0, min(1, layers - 1), layers - 1})]
    return [at_loss(job), last_norm(job), *blocks, block_end(job), at_root(job), step(job)]


def states(job: Job) -> dict[str, float]:
    """Parameters and AdamW's two moments: they are always there."""
    own = weights(job).all * job.widths.parameter / job.sharded
    return {"parameters": own, "optimizer": 2 * own}


def batch(job: Job) -> float:
    """The rank's share of an update, and the tables and indices of a micro-batch."""
    return BATCH * job.rank_rows * job.context + job.local_tokens * activations.tables(job)


def waiting(job: Job, done: int = 0) -> float:
    """Gradients that there are when the backward pass is through with ``done`` blocks: those of earlier micro-batches, those of the blocks
    done, and of the head."""
    size, width = weights(job), job.widths.parameter
    if job.micro_batches > 1 and not (job.fsdp and job.accumulate == "sharded"):
        return size.all * width  # the same room, micro-batch after micro-batch
    sums = size.all if job.micro_batches > 1 else done * size.block
    return sums * width / job.sharded + (size.head * job.widths.gathered if done else 0.0)


def reduced_at_once(job: Job) -> bool:
    """Whether a block's gradients are reduced as soon as they exist, in the micro-batch with the most memory."""
    return job.fsdp and (job.micro_batches == 1 or job.accumulate == "sharded")


def at_loss(job: Job) -> Moment:
    """After the last chunk's logits: ``hidden`` and its gradient, and the head's gradient in fp32."""
    tokens, size, width = job.local_tokens, weights(job), job.widths
    stream = tokens * width.stream * job.model.d_model
    held = tokens * (job.model.n_layers * activations.kept(job) + activations.norm(job)) + 2 * stream + batch(job)
    gathered = 0.0
    if job.fsdp:
        gathered = (size.root + (size.block if job.sharded > 1 else 0.0)) * width.gathered
    if job.checkpointing == "none":
        gathered += size.layers * copies_of_weights(job)
    before = waiting(job) if job.micro_batches > 1 else 0.0
    return Moment("loss", **states(job), gradients=before, activations=held, logits=logits(job), gathered=gathered)


def last_norm(job: Job) -> Moment:
    """The norm before the head in its backward pass: all blocks still have what they kept."""
    tokens, size, width = job.local_tokens, weights(job), job.widths
    gradients = (2 * width.stream if job.kernels == "cuda" else 16) * job.model.d_model
    held = tokens * (size.layers * activations.kept(job) + activations.norm(job) + gradients) + batch(job)
    coming = size.block if job.sharded > 1 else 0.0
    copies = size.layers * copies_of_weights(job) if job.checkpointing == "none" else 0.0
    return Moment(
        "last norm",
        **states(job),
        gradients=(waiting(job) if job.micro_batches > 1 else 0.0) + size.head * width.gathered,
        activations=held,
        gathered=((size.root + coming) * width.gathered if job.fsdp else 0.0) + copies,
    )


def logits(job: Job) -> float:
    """What the chunked loss has at its most (model/loss.py). A chunk's gradient is still there while the next chunk's logits are made."""
    tensor, head = job.mesh.tensor, weights(job).head
    chunk = min(tensor * max(FEWEST, job.loss_memory // (BYTES_A_LOGIT * job.model.vocab_size)), job.local_tokens)
    numbers, logit = chunk * job.model.vocab_size / tensor, job.widths.computed
    gradient = before = numbers * logit
    if job.local_tokens <= chunk:
        before = 0.0
    wide = copy = 4 * numbers
    if logit == 4:
        copy = 0.0
    elif tensor > 1:
        copy += gradient  # the logits in fp32 stay beside their exponentials, until these are rounded
    elif job.kernels == "cuda":
        copy = gradient  # the softmax of a GPU reads logits in bf16; a CPU's wants a copy in fp32
    making = before + gradient + wide + copy
    multiplying = 2 * gradient + head * logit
    ending = 2 * gradient + (head * job.widths.gathered if job.widths.gathered != 4 else 0.0)
    rounded_head = head * logit if job.widths.gathered != logit else 0.0
    return 4 * head + rounded_head + max(making, multiplying, ending)


def copies_of_weights(job: Job) -> float:
    """A block's weights in the precision of products, where that is another than their own."""
    return weights(job).products * job.widths.computed if job.widths.computed != job.widths.gathered else 0.0


def block(job: Job, done: int) -> Moment:
    """The backward pass of a block when ``done`` blocks, counted from the last, are through."""
    tokens, size, width = job.local_tokens, weights(job), job.widths.gathered
    left = size.layers - done
    held = tokens * (left * activations.kept(job) + activations.computed_again(job) + activations.gradients(job)) + batch(job)
    copies = copies_of_weights(job) * (left if job.checkpointing == "none" else 1)
    own = (size.down + (size.head if not done else 0.0)) * width if job.micro_batches == 1 else size.down * width
    return Moment(
        f"block {left}",
        **states(job),
        gradients=waiting(job, done) + own,
        activations=held,
        gathered=gathered(job, last=left == 1) + copies,
        communication=sent(job, done) + exchanged(job),
    )


def gathered(job: Job, last: bool) -> float:
    """FSDP2 in a block's backward pass: the root's and the block's parameters, and the next block's as they come."""
    if not job.fsdp:
        return 0.0
    size, width = weights(job), job.widths.gathered
    ahead = size.block if job.sharded > 1 and not last else 0.0
    return (size.root + size.block + ahead) * width


def sent(job: Job, done: int) -> float:
    """The block's gradients before this one's, as they are handed to reduce-scatter: kept until the next are."""
    return weights(job).block * job.widths.parameter if done and reduced_at_once(job) else 0.0


def exchanged(job: Job) -> float:
    """Keys and values as they arrive from the context ranks, and the stream as tensor ranks sum it."""
    model, mesh, width = job.model, job.mesh, job.widths.computed
    keys = 2 * model.n_kv_heads * model.head_dim / mesh.tensor * mesh.context if mesh.context > 1 else 0.0
    stream = model.d_model if mesh.tensor > 1 else 0.0
    return job.local_tokens * width * (keys + stream)


def block_end(job: Job) -> Moment:
    """The end of the last block's backward pass but one: its gradients are whole, nothing is resharded yet."""
    tokens, size, width = job.local_tokens, weights(job), job.widths.gathered
    done = min(1, size.layers - 1)
    left = size.layers - done
    stream = activations.block_input(job)
    held = tokens * ((left - 1) * activations.kept(job) + activations.norm(job) + 3 * stream) + batch(job)
    return Moment(
        f"block {left}'s end",
        **states(job),
        gradients=waiting(job, done) + (size.block * width if job.micro_batches == 1 or reduced_at_once(job) else 0.0),
        activations=held,
        gathered=gathered(job, last=left == 1) + copies_of_weights(job) * (left - 1 if job.checkpointing == "none" else 0),
        communication=sent(job, done),
    )


def at_root(job: Job) -> Moment:
    """The embedding's gradient is made, and it and the head's are reduced."""
    size, width = weights(job), job.widths
    held = job.local_tokens * activations.block_input(job) + batch(job)
    if not job.fsdp:
        return Moment("root", **states(job), gradients=size.all * width.parameter, activations=held)
    whole = size.root * width.gathered
    if job.micro_batches > 1 and job.accumulate == "whole":
        whole = size.all * width.parameter
    done = size.layers * size.block * width.parameter / job.sharded
    return Moment(
        "root",
        **states(job),
        gradients=whole + done,
        activations=held,
        gathered=size.root * width.gathered,
        communication=sent(job, 1),
    )


def step(job: Job) -> Moment:
    own = states(job)
    return Moment("step", **own, gradients=own["parameters"], activations=BATCH * job.rank_rows * job.context)
