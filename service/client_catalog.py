"""What a server says about itself, as the client hands it on: model, dictionary, what is watched, limits.

Conventions as in `client_events`. Knows nothing of gRPC.
"""

from dataclasses import dataclass

from service.client_guards import NO_GUARD, Fidelity, MonitorInput, ReconstructionGuard


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The served model."""

    name: str
    weights_sha256: str
    quantization: str
    dtype: str
    device: str
    num_layers: int
    d_model: int
    vocab_size: int
    context_length: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaeInfo:
    """The served dictionary."""

    name: str
    sha256: str
    hook_point: str
    num_latents: int
    activation: str
    verified: bool
    """Whether it was trained on the very weights served, at the same quantisation."""
    mismatches: tuple[str, ...]
    resid_norm_mean: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedFeature:
    """A feature read at every token of a request."""

    feature: int
    """Index of the latent."""
    name: str
    """Empty for a latent nobody named."""
    reference_scale: float
    """A high reading in ordinary text, to measure others against; 0 if unknown."""
    validated: bool
    """Whether evidence says that the feature is what its name says."""

    @property
    def label(self) -> str:
        """What to call it: its name, or its index."""
        return self.name or str(self.feature)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the server."""

    slots: int
    context_length: int
    max_queued_requests: int
    max_queued_prompt_tokens: int
    max_steering_relative_norm: float
    prefill_chunk_tokens: int
    max_top_features: int = 0
    max_watched_features: int = 0
    max_steering_operations: int = 0
    max_stop_strings: int = 0
    max_request_seconds: float = 0.0
    max_policies: int = 0
    max_hold_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn where a request does not say. None: drawn by the server for each request."""

    temperature: float | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    top_k: int | None
    max_tokens: int | None
    seed: int | None
    stop: tuple[str, ...]
    ignore_eos: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalInfo:
    """How the alert journal stands."""

    num_entries: int
    head_seq: int
    """Number of the last entry ever written."""
    keeps_text: bool
    is_writable: bool
    """Whether the last entry could be written."""
    num_write_failures: int
    write_error: str
    is_forwarded: bool
    """Whether a database gets a copy."""
    num_waiting: int
    """Entries that it has not got yet."""
    lag_seconds: float
    """Age of the oldest of them."""
    forward_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What is served."""

    version: str
    model: ModelInfo
    sae: SaeInfo | None
    """None if the model is served without a dictionary, with probe monitors alone."""
    limits: Limits
    sampling_defaults: SamplingParams
    default_watched: tuple[WatchedFeature, ...]
    default_monitors: tuple[str, ...]
    requests_running: int
    requests_waiting: int
    uptime_seconds: float
    watch_generation: int
    planned_memory_bytes: int
    passes: str = ""
    """How passes are run: native kernels, CUDA graphs or transformers; empty if the server is older than this field."""
    steering_hook_point: str = ""
    """Where steering acts; empty if it is refused, or the server is older than this field."""
    journal: JournalInfo | None = None
    """None if the server keeps none."""
    reconstruction_guard: ReconstructionGuard = NO_GUARD
    fidelity: tuple[Fidelity, ...] = ()
    """Empty if it was not measured."""
    inputs: tuple[MonitorInput, ...] = ()
    """Watched features and monitors' inputs, and whether they fire at all."""
