"""The typed schema: every setting of every stage, with its default.

Fields marked ``metadata=NOT_IDENTITY`` say where and how a stage runs, not what it computes: they never enter its identity. Those marked
GPU_IDENTITY enter it on GPUs only, those marked TRAIN_IDENTITY not that of prepared data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlsplit

from lit_long.config.ranges import (
    Base,
    Choice,
    Count,
    CountOrNone,
    FilePath,
    Finite,
    NotNegative,
    Positive,
    PositiveShare,
    Range,
    Seed,
    Share,
    ShareBelowOne,
)
from lit_long.config.renamed import UNTIL, say_once
from lit_long.config.text import Axes, EscapedText
from lit_long.config.typed import NOT_IDENTITY, TRAIN_IDENTITY, UserError

SHORTEST_RETRIEVAL = 128  # tokens of a retrieval example (data/synthetic.py); below, the sentence would be most of the text
Spike = Annotated[float, Range(above=1, or_zero=True, note="a multiple of the median loss; 0 = no limit")]
RetrievalLength = Annotated[int, Range(least=SHORTEST_RETRIEVAL, note="tokens")]


@dataclass
class ModelConfig:
    """Shape of a Llama, and what the families after it do otherwise. ``context`` and ``rope_base`` are those it was (or is to be) pretrained with.

    ``init`` names pretrained weights (pretrained/open.py); they bring the shape along. Their content enters a stage's identity,
    not their name.
    """

    vocab_size: Count = 32_000
    d_model: Count = 4096
    n_layers: Count = 32
    n_heads: Count = 32
    n_kv_heads: Count = 32
    head_dim: Count = 128
    d_ffn: Count = 11_008
    norm_eps: NotNegative = 1e-5
    tie_embeddings: bool = False
    context: Count = 4096
    rope_base: Base = 10_000.0
    # RMSNorm of queries and keys before they are rotated: of each head (Qwen3), or of all heads as one vector (OLMo 2)
    qk_norm: Annotated[str, Choice("none", "head", "layer")] = "none"
    # where a block has its norms: before attention and feed-forward, or after them (OLMo 2)
    norm: Annotated[str, Choice("pre", "post")] = "pre"
    activation: Annotated[str, Choice("swiglu", "relu2")] = "swiglu"  # relu2: max(0, x)², without a gate (Arcee)
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    embedding_multiplier: Positive = 1.0  # this and the next three are Granite's
    residual_multiplier: Positive = 1.0  # of what attention and feed-forward add
    attention_multiplier: NotNegative = 0.0  # of the scores; 0 = 1/√head_dim
    logits_scaling: Positive = 1.0  # logits are divided by it
    init: FilePath = field(default="", metadata=NOT_IDENTITY)


@dataclass
class LayerGroupConfig:
    """Layers that attend alike. ``position`` is checked by its scheme's own class, ``query_scale`` by its form's."""

    position: dict[str, Any] = field(default_factory=dict)  # their own encoder, as in configs/position; none: the stage's
    window: Count | None = None  # tokens that a query sees, its own included; null: all before it
    query_scale: dict[str, Any] = field(
        default_factory=dict
    )  # such as {form: log, base: 1000} (positions/query_scale.py); none: 1


@dataclass
class LayersConfig:
    """Layers that differ: ``pattern`` names the group of each layer, from the first one on, and begins again where it ends. Without one all are alike."""

    groups: dict[str, LayerGroupConfig] = field(default_factory=dict)
    pattern: list[str] = field(default_factory=list)


@dataclass
class CorpusConfig:
    """Documents and tokenizer of the built-in corpus. ``validation`` lists the top-level modules that are held out.

    ``tokenizer`` names pretrained weights whose tokenizer to use (model.init's, unless set); without any, one of ``vocab_size`` is trained.
    """

    name: str = "builtin"
    packages: list[str] = field(default_factory=list)
    validation: list[str] = field(default_factory=list)
    vocab_size: Count = 4096
    tokenizer: FilePath = field(default="", metadata=NOT_IDENTITY)  # its content enters the identity


@dataclass
class InstructConfig:
    """What makes a source instruction data: the form of its rows, and how much each token counts in the loss (data/conversations.py).

    The prompt's weight is LLaMA 2 Long's switch: 0 learns to answer only, 1 learns the long prompt as language, too (Table 9).
    """

    schema: str = ""  # messages · sharegpt · prompt · qa; none: the source is plain text
    prompt: EscapedText = ""  # schema prompt: a field, or a template such as "{chapter}\n\nSummarise this chapter."
    answer: EscapedText = ""
    template: str = "auto"  # chat: the tokenizer's own · plain: ours · auto: chat where there is one
    max_tokens: CountOrNone = 0  # schema qa: of an example; longer documents are cut on both sides of the chunk. 0 = no limit
    packing: str = field(default="whole", metadata=TRAIN_IDENTITY)  # whole: several a sequence, none cut · single: one, padded
    prompt_weight: NotNegative = field(default=0.0, metadata=TRAIN_IDENTITY)
    answer_weight: NotNegative = field(default=1.0, metadata=TRAIN_IDENTITY)
    # What the weighted nats of an update are divided by. weights: the sum of all weights · answers: the number of answer tokens
    divisor: str = field(default="weights", metadata=TRAIN_IDENTITY)

    @property
    def weighs(self) -> bool:
        """Whether some targets count more than others in the loss."""
        return bool({self.prompt_weight, self.answer_weight} - {0.0, 1.0})

    @property
    def divides(self) -> bool:
        """Whether the divisor is another sum than that of the weights."""
        return self.divisor == "answers" and (self.prompt_weight, self.answer_weight) != (0.0, 1.0)


@dataclass
class SourceConfig:
    """One's own documents. ``path`` is all that is needed; which documents there are, and not where, makes the identity.

    A file, a folder or a glob of text files (one document each), JSON lines or arrays, or parquet, each by what it holds; or ``hf:NAME`` for a data set that
    Hugging Face `datasets` loads: a folder, or ORG/NAME[@COMMIT] on the hub.
    """

    path: FilePath = field(default="", metadata=NOT_IDENTITY)
    kind: str = "auto"  # text · jsonl · parquet · mixed · hf; auto follows from what is there, and is resolved before the identity is taken
    text: EscapedText = (
        "text"  # the field (column) that holds the text, or a template such as "{question} {answer}"; see data/readers.py
    )
    where: dict[str, str] = field(default_factory=dict)  # only rows with these values, such as meta.language: en
    encoding: str = "utf-8"  # of text and jsonl
    subset: str = ""  # hf: the configuration's name
    split: str = "train"  # hf
    streaming: bool = field(default=False, metadata=NOT_IDENTITY)  # hf: read while downloading
    min_characters: CountOrNone = 1  # shorter documents are left out
    max_characters: CountOrNone = 0  # longer ones, too; 0 = no limit
    dedup: bool = True  # of documents with exactly the same text keep the first
    keep: PositiveShare = 1.0  # share of the documents to keep, chosen by hash
    validation_share: Share = 0.02  # share of the documents to hold out, chosen by hash; at least one unless it is 0
    # Of text files: a pattern whose first group, in the file's name, what lies on one side of that split has in common, such as "(.*) - " for
    # "AUTHOR - TITLE.txt"; the share is then one of authors
    split_by: EscapedText = ""
    content: str = ""  # sha256 of what was found, filled in when planned; given, it insists on that content
    instruct: InstructConfig = field(default_factory=InstructConfig)


@dataclass
class SamplingConfig:
    """Which documents of a domain are drawn, and how often, by their length in tokens. The domain's share of the mixture stays the same."""

    min_tokens: CountOrNone = 0  # shorter documents are never drawn
    max_tokens: CountOrNone = 0  # longer ones, too, and of retrieval no longer examples are made; 0 = no limit
    long_tokens: CountOrNone = 0  # documents of more tokens are long; 0 = no distinction
    long_share: ShareBelowOne = 0.0  # of the domain's tokens, that come from long documents (Fu et al. 2024: 0.7 instead of 0.3)
    documents: CountOrNone = 0  # so many different ones, chosen by the seed, are all that is ever drawn; 0 = no limit


@dataclass
class DataConfig:
    """A training mixture: ``weights`` are shares of tokens per domain; ``mask_documents`` stops attention at document boundaries.

    Domains are the names of ``sources``, and the built-in corpus's own. The latter is in use unless there are sources and the weights
    name only them; without a weight of their own, sources share the mixture equally and are all of it.
    """

    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    weights: dict[str, NotNegative] = field(default_factory=dict)
    repeats: dict[str, NotNegative] = field(
        default_factory=dict
    )  # instead of weights: passes over each domain, relative to one another
    max_epochs: NotNegative = field(
        default=0.0, metadata=NOT_IDENTITY
    )  # no domain may be passed more often in a run; 0 = no limit
    sampling: dict[str, SamplingConfig] = field(default_factory=dict)  # by domain
    packing: str = "concat"  # concat · best_fit · single
    mask_documents: bool = True


@dataclass
class PhaseConfig:
    """A part of a run. ``scale`` and ``grow_from`` are shares of the stage's context, so that one curriculum fits all lengths."""

    until: PositiveShare = 1.0  # share of the stage's tokens that is trained on when the phase ends
    scale: PositiveShare = 1.0  # the context; tokens per update stay the same
    grow_from: Share = 0.0  # the context at the beginning, from where it grows linearly to ``scale``; 0 = it is constant
    weights: dict[str, NotNegative] = field(default_factory=dict)  # instead of the stage's
    position: dict[str, Any] = field(default_factory=dict)  # on top of the stage's, or instead of it where a scheme is named
    layers: dict[str, Any] = field(default_factory=dict)  # on top of the stage's, or instead of it where a pattern is named


@dataclass
class CurriculumConfig:
    """The phases of a run, in order; none: it has one."""

    phases: list[PhaseConfig] = field(default_factory=list)


@dataclass
class AdapterConfig:
    """LoRA: beside the matrices called ``targets``, which are frozen with all the rest, products of two of ``rank`` are trained."""

    rank: CountOrNone = 0  # 0 = no adapter, all weights are trained
    alpha: Positive = 16.0  # the product counts alpha / rank times
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    train_embeddings_and_norms: bool = False  # these too, whole (LongLoRA)


@dataclass
class OptimConfig:
    """AdamW, or Muon, with linear warm-up and cosine decay. Llama 2's settings (Touvron et al. 2023b, §2.2) unless an option says otherwise."""

    name: str = "adamw"  # · muon (training/optimizers.py)
    lr: NotNegative = 3e-4
    min_lr_ratio: Share = 0.1
    warmup_fraction: Share = 0.02
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)
    eps: NotNegative = 1e-5
    weight_decay: NotNegative = 0.1
    grad_clip: Positive = 1.0


@dataclass
class TrainerConfig:
    """Where and how a stage runs. Only the precision changes what it computes."""

    precision: str = "auto"  # auto · 32-true · bf16-mixed · bf16-true; auto is resolved before the stage's identity is taken
    accelerator: str = field(default="cpu", metadata=NOT_IDENTITY)
    strategy: str = field(default="single", metadata=NOT_IDENTITY)  # single · fsdp
    devices: Count = field(default=1, metadata=NOT_IDENTITY)  # of each machine
    nodes: Count = field(default=1, metadata=NOT_IDENTITY)  # machines
    # The mesh of strategy=fsdp: nodes · devices = replicate · shard · context_parallel · tensor_parallel; shard is what is left
    replicate: Count = field(
        default=1, metadata=NOT_IDENTITY
    )  # copies of the sharded model, between which gradients alone travel (HSDP)
    context_parallel: Count = field(default=1, metadata=NOT_IDENTITY)  # ranks that share the tokens of each sequence
    tensor_parallel: Count = field(default=1, metadata=NOT_IDENTITY)  # ranks that share each matrix
    threads: CountOrNone = field(default=0, metadata=NOT_IDENTITY)  # CPU threads over all processes; 0 = all cores
    micro_batch_tokens: Count = field(default=2048, metadata=NOT_IDENTITY)
    loss_memory: Count = field(
        default=2**29, metadata=NOT_IDENTITY
    )  # bytes that logits, and what is made of them, may take at once
    loss: str = field(default="auto", metadata=NOT_IDENTITY)  # auto · chunked · liger · cut; see model/fused_loss.py
    attention: str = field(default="auto", metadata=NOT_IDENTITY)  # auto · sdpa · flash · varlen; see model/attention.py
    checkpointing: str = field(
        default="none", metadata=NOT_IDENTITY
    )  # none · selective · attention · full: activations computed again in backward
    compile: bool = field(default=False, metadata=NOT_IDENTITY)  # torch.compile, block by block
    mkl_fast_path: bool = field(default=True, metadata=NOT_IDENTITY)  # on processors of AMD's; see processor.py
    # strategy=fsdp, several micro-batches: add up whole gradients and reduce them once, or reduce each time and add up what is kept of them
    accumulate: str = field(default="whole", metadata=NOT_IDENTITY)  # whole · sharded
    checkpoint_every: Count = field(default=100, metadata=NOT_IDENTITY)  # updates
    keep_checkpoints: Count = field(default=1, metadata=NOT_IDENTITY)  # the newest so many stay
    milestones: list[Positive] = field(
        default_factory=list, metadata=NOT_IDENTITY
    )  # checkpoints that stay, too: up to 1 shares of the run, above it tokens, such as [0.5, 20M]
    checkpoint_async: str = field(
        default="auto", metadata=NOT_IDENTITY
    )  # written beside training: auto (on a GPU) · always · never
    timeout_minutes: NotNegative = field(
        default=30.0, metadata=NOT_IDENTITY
    )  # several ranks: end when nothing moves for so long; 0 = never
    # A loss or gradient that is not finite, or a loss above ``spike`` times the median of the last ones (0 = no limit). With stop they change
    # no result, only whether there is one (stages/identity.py).
    on_bad_step: str = "stop"  # stop · skip
    spike: Spike = 0.0


@dataclass
class EvaluationConfig:
    """What an evaluate stage measures, on held-out documents only."""

    domains: list[str] = field(default_factory=list)
    lengths: list[Count] = field(default_factory=list)  # perplexity: every sequence is full, one document each
    sequences: Count = 32  # at most, per domain; every length sees the same tokens
    skip: CountOrNone = 0  # held-out documents, and examples of retrieval, to leave out first: those that settings were chosen on
    # Values of the query scales' constant (`QueryScale.fitted`), of which that with the lowest perplexity at the longest length, over the
    # documents that ``skip`` leaves out, is taken for all that is measured; none: as layers.groups.NAME.query_scale says
    query_scales: list[NotNegative] = field(default_factory=list)
    retrieval_lengths: list[RetrievalLength] = field(default_factory=list)  # FIRST-SENTENCE-RETRIEVAL
    passkey_lengths: list[RetrievalLength] = field(default_factory=list)  # PASSKEY, in the same texts
    retrieval_examples: Count = 64  # per length, of either task
    retrieval_control: bool = (
        False  # at the shortest length also with each other's texts: what a model scores that cannot look back
    )
    retrieval_domain: str = ""  # whose documents both are made from; "": docs, or without it the first of domains
    tasks: list[str] = field(default_factory=list)  # of python -m lit_long.evaluate, such as mmlu, needle (docs/evaluation.md)
    task_lengths: list[Count] = field(
        default_factory=list
    )  # tokens of their prompts, the answer included; none: the model's context
    task_samples: CountOrNone = 0  # of every task and length; 0 = 8, and of public data sets all
    public: FilePath = field(default="", metadata=NOT_IDENTITY)  # folder of public data sets, or hub
    run_code: bool = field(default=False, metadata=NOT_IDENTITY)  # allows HumanEval and MBPP, which run what the model wrote
    precision: str = "32-true"  # 32-true · bf16-true
    batch_tokens: Count = field(default=4096, metadata=NOT_IDENTITY)

    @property
    def asked_lengths(self) -> list[int]:
        """The lengths at which ``retrieval_examples`` examples are read, each time that they are."""
        control = [min(self.retrieval_lengths)] if self.retrieval_control and self.retrieval_lengths else []
        return [*self.retrieval_lengths, *self.passkey_lengths, *control]


@dataclass
class ValidationConfig:
    """Validation loss during training: ``sequences`` per domain, measured ``times`` times over the run, the end included."""

    times: CountOrNone = 4
    sequences: Count = 8


@dataclass
class SharedConfig:
    """What a sweep sets for all its stages, and each stage may set for itself. ``position`` is checked by its scheme's own class."""

    seed: Seed = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    position: dict[str, Any] = field(default_factory=dict)
    layers: LayersConfig = field(default_factory=LayersConfig)
    data: DataConfig = field(default_factory=DataConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass
class StageConfig(SharedConfig):
    """One stage, complete: what `python -m lit_long.stage` runs."""

    kind: str = "train"  # data · train · evaluate
    parent: str | None = None
    shipped: str = ""  # training: weights in experiments/bases/ that stand for the stage if its settings made them
    # The share of its parent's run after which training goes on from it, with what is left of the parent's data, in their order, or an evaluation
    # measures it; 1: where the parent ended, and training has data of its own
    branch: Share = 1.0
    context: Count = 4096
    tokens: CountOrNone = 0
    tokens_per_update: Count = 4_194_304


@dataclass
class LauncherConfig:
    """Where stages run, and how many at once. A key that says nothing to the launcher in use is refused (launch/launcher.py). No key enters an identity."""

    name: str = "local"  # local · torchrun · slurm · ray
    parallel: Count = 1  # stages side by side, as far as the machine or cluster allows
    fork: bool = True  # local: on a CPU, stages are forks of a process that has imported what they need (launch/fork_server.py)
    # torchrun: stages of several nodes
    hosts: list[str] = field(default_factory=list)  # the nodes, reached by ssh; none: the other nodes' command lines are printed
    rdzv_endpoint: str = ""  # HOST[:PORT] at which the first node is reached by the others
    ssh: str = "ssh"  # the command, with options such as -p 2222
    # slurm and ray
    cpus: Count = 4  # of each process
    cancel_on_exit: bool = True  # Ctrl-C ends the jobs, too; else they go on, and the same command finds them again
    # slurm: a stage is a job
    cluster: str = "slurm"  # slurm · local: submitit's processes on this machine, to try settings without a cluster
    hours: Positive = 24.0  # then it is checkpointed and queued again
    grace_seconds: CountOrNone = 120  # between that signal, or that of a preemption, and the end
    requeues: CountOrNone = 100  # as often at most
    partition: str = ""
    account: str = ""
    qos: str = ""
    memory: str = ""  # of each node, such as 64G; none: the partition's default
    extra: dict[str, Any] = field(default_factory=dict)  # other options of sbatch: {constraint: a100, exclusive: true}
    setup: list[str] = field(default_factory=list)  # shell lines before the stage: module load cuda (torchrun: on each host, too)
    poll_seconds: Positive = 15.0  # between two looks at the queue, one for all jobs
    # ray: a stage is an actor
    # auto: the cluster that this machine belongs to · local: one on this machine, for this sweep · HOST:PORT
    address: str = "auto"


@dataclass
class TrackingConfig:
    """Where the record goes. A key that says nothing to the tracker in use is refused (tracking/tracker.py)."""

    enabled: bool = True
    name: str = "mlflow"  # mlflow · csv, a plain folder
    uri: str = ""  # mlflow: of its store or server; none: the SQLite file mlflow/mlflow.db below root
    folder: FilePath = ""  # csv: none: tracking/ below root
    # said where tracking=csv is not the name of an option, as it is for a sweep
    wanted = "a group of settings, such as tracking.name=csv or tracking.enabled=false"

    def __post_init__(self) -> None:
        check_uri(self.uri, "tracking.uri")


def check_uri(uri: str, key: str) -> None:
    """Raise UserError for what is no URI, or has a password in it; ``key``: the setting that it is."""
    try:
        password = urlsplit(uri).password
    except ValueError as error:
        raise UserError(f"{key} is no URI: {error}; http://HOST:PORT, sqlite:///FILE and postgresql://HOST/NAME are") from None
    if password is not None:
        raise UserError(
            f"{key} has a password in it, which would be written to logs, folders and the record itself. Leave it out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (for a database, its own file, such as ~/.pgpass)"
        )


@dataclass
class MeasuredConfig:
    """One of our measurements, to stand beside a published column."""

    metric: str = ""
    domain: str = ""
    length: CountOrNone = 0  # 0 = the longest that was measured
    scale: Finite = 1.0  # 100 where the paper prints %


@dataclass
class PublishedConfig:
    """A table, or the points of a curve, of a paper: its numbers as printed, and which of our measurements are of the same kind."""

    title: str = ""
    source: str = ""
    rows: dict[str, dict[str, Finite]] = field(default_factory=dict)  # variant → column → number
    measured: dict[str, MeasuredConfig] = field(default_factory=dict)  # column → ours; other columns show the paper alone


@dataclass
class PredictorConfig(MeasuredConfig):
    """One of our measurements of each design."""

    row: str = "{}"  # the variant that it is of, {} for the design's name


@dataclass
class PredictorsConfig:
    """What tells beforehand how good a design will be: how much of ``outcome``'s variance over designs each predictor explains (OlmPool)."""

    outcome: PredictorConfig = field(default_factory=PredictorConfig)
    by: dict[str, PredictorConfig] = field(default_factory=dict)  # measured, by what they are called
    known: dict[str, dict[str, Finite]] = field(default_factory=dict)  # not measured: called → design → number
    designs: list[str] = field(default_factory=list)


@dataclass
class CurveConfig:
    """A paper's curve of retrieval by length, drawn thinly behind ours: its lengths as shares of its own model's context."""

    source: str = ""
    context: CountOrNone = 0  # of the model before it was extended, in tokens
    rows: dict[str, list[list[Finite]]] = field(default_factory=dict)  # variant → its corners: [tokens, %]


@dataclass
class LawConfig:
    """The context-length scaling law (LLaMA 2 Long, section 1.5): given, it is fitted to our losses by length, beside the paper's constants."""

    source: str = ""
    rows: dict[str, dict[str, Finite]] = field(default_factory=dict)  # the paper's model → alpha (tokens), beta, gamma (nats)


@dataclass
class BoundConfig:
    """How 0.1 asked for what ``by_base`` asks for, with the bases typed a second time. Goes with 0.3."""

    head_dim: Count = 64
    rows: dict[str, Base] = field(default_factory=dict)  # variant → base


@dataclass
class ReportConfig:
    """Which stage's results fill the table's rows, which stage is the reference row, and the paper's own numbers."""

    title: str = ""
    rows: str = "evaluate"
    rows_also: list[str] = field(default_factory=list)  # further evaluate stages, whose measurements stand in the same rows
    reference: str | None = None
    paper_table: str = ""  # such as "5, 6": the tag paper.table of all runs
    paper_source: str = ""
    paper_length: CountOrNone = 0
    paper: dict[str, dict[str, Finite]] = field(default_factory=dict)  # variant → domain → perplexity
    published: list[PublishedConfig] = field(default_factory=list)  # further tables
    predictors: PredictorsConfig = field(default_factory=PredictorsConfig)
    curve: CurveConfig = field(default_factory=CurveConfig)
    law: LawConfig = field(default_factory=LawConfig)
    by_base: bool = False  # of a sweep over RoPE bases: retrieval by base, with the criterion of positions/bounds.py
    bound: BoundConfig = field(default_factory=BoundConfig)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.bound.rows:
            say_once(
                f"report.bound: bases are read from the stages' settings now; write report.by_base: true (works until {UNTIL})"
            )

    @property
    def shows_bases(self) -> bool:
        return self.by_base or bool(self.bound.rows)


AXES = Axes(lambda: SweepConfig)


@dataclass
class SweepConfig(SharedConfig):
    """One experiment: settings shared by all stages, the stages, and the grid of variants."""

    experiment: str = "position_tiny"
    description: str = ""
    scale: str = ""  # the one of the experiment's scales that this is (command.py)
    base: str = (
        "shipped"  # shipped: stages whose weights came with lit-long are not trained · train: they are (stages/archive.py)
    )
    grid: dict[str, Any] = field(default_factory=dict, metadata={"read_as": AXES})
    # points of the grid that are not run
    exclude: list[dict[str, Any]] = field(default_factory=list, metadata={"read_as": list[AXES]})
    stages: dict[str, Any] = field(default_factory=dict, metadata={"read_as": dict[str, StageConfig]})
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    root: FilePath = ""  # runs/ and mlflow/ live below it; empty = the checkout, or the working directory when installed
    dry_run: bool = False
    only_failed: bool = False  # run again what failed, and nothing that was never tried (stages/plan.py)
    show: str = ""  # show=config prints the resolved YAML
