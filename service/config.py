"""Every option of the server, with its default, its bounds and its meaning: the one place that defines them.

Flags, `TELLTALE_*` variables, keys of the config file and the table in docs/configuration.md are all derived from
`Settings` (see `options` and `config_layers`). A `Settings` is checked when it is made and never changes. It reads
neither the environment nor a config file by itself, so `Settings(slots=2)` means the same everywhere.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from sae_runtime.hook_point import HookPoint

EMBEDDED = "embedded"
"""The model that needs no download, and the dictionary that was trained on it."""
NO_DICTIONARY = "none"
"""Serve with probe monitors alone."""
NO_JOURNAL = "none"
"""As `journal`: alerts are not kept."""
TOP_FEATURES_LIMIT = 64
"""Most top features per token that the wire contract allows."""


def _existing_file(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_file():
        raise ValueError("must be an existing file")
    return path


def _existing_folder(path: Path) -> Path:
    path = path.expanduser()
    if not path.is_dir():
        raise ValueError("must be an existing folder")
    return path


def _expand_home(name: str) -> str:
    return str(Path(name).expanduser()) if name.startswith("~") else name


def _dictionary(sae: str) -> str:
    sae = _expand_home(sae)
    if sae not in (EMBEDDED, NO_DICTIONARY) and not Path(sae).is_dir():
        raise ValueError(f"must be '{EMBEDDED}', '{NO_DICTIONARY}' or an existing folder")
    return sae


def _hook_point(text: str) -> str:
    try:
        return str(HookPoint.parse(text))
    except ValueError:
        raise ValueError("must look like 'layers.15.output' or 'blocks.15.hook_resid_post'") from None


def _journal_file(path: str) -> str:
    if "://" in path:
        raise ValueError("must be a path, or none; journal_forward takes a database")
    return path if path == NO_JOURNAL else str(Path(path).expanduser())


def _database_url(url: SecretStr) -> SecretStr:
    if not re.match(r"postgres(ql)?://", url.get_secret_value()):
        raise ValueError("must be postgresql://USER@HOST/DATABASE")
    return url


def _shaped(pattern: str, wanted: str) -> AfterValidator:
    """Checks a text against `pattern`, and says `wanted` instead of the pattern if it does not match."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {wanted}")
        return text

    return AfterValidator(check)


def _delimiters(text: str) -> str:
    pairs = [] if text in ("auto", "none") else [pair.split() for pair in text.split(",")]
    if not all(len(pair) == 2 and pair[0] != pair[1] for pair in pairs):
        raise ValueError("must be auto, none, or pairs of texts that differ, OPENING CLOSING[,OPENING CLOSING...]")
    return text


def _plain_host(host: str) -> str:
    if not host or any(mark in host for mark in "/[] "):
        raise ValueError("must be a host name or an IP address, without brackets, port or scheme")
    return host


File = Annotated[Path, AfterValidator(_existing_file)]
Folder = Annotated[Path, AfterValidator(Path.expanduser)]
ExistingFolder = Annotated[Path, AfterValidator(_existing_folder)]
Device = Annotated[str, _shaped(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")]
Sha256 = Annotated[str, _shaped(r"[0-9a-f]{64}", "64 lower-case hexadecimal digits")]
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Days = Annotated[float, Field(ge=0, le=36_500, allow_inf_nan=False)]  # as `journal_retention.MAX_DAYS`
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """How this server runs. What a dictionary or a model *is* stands beside its weights, not here."""

    # `model_` is reserved by older pydantic; `model_sha256` is the natural name here.
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    # The model
    model: Annotated[str, AfterValidator(_expand_home)] = Field(
        EMBEDDED,
        min_length=1,
        description="Model to serve: `embedded` (SmolLM2-135M-Instruct), a `.gguf` file, a folder, or a hub name.",
    )
    quantization: Literal["auto", "none", "nf4", "int8"] = Field(
        "auto",
        description="How weights are quantised on loading. `auto` is nf4 on CUDA, else none. On a CPU nf4 takes layers "
        "whose inputs are a multiple of 64. GGUF files stay as they are and take only auto or none.",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Number format of the computation. `auto` is bfloat16, or float32 on processors without bfloat16 "
        "instructions.",
    )
    device: Device = Field("auto", description="`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`.")
    model_sha256: Sha256 | None = Field(
        None, description="Refuse to serve weights with another hash than this: 64 lower-case hexadecimal digits."
    )
    cache_dir: Folder | None = Field(
        None,
        description="Folder for converted weights and their hashes. Unset: `$XDG_CACHE_HOME/telltale` or "
        "`~/.cache/telltale`.",
    )
    cuda_graphs: bool = Field(
        True,
        description="On a GPU, run decode passes as CUDA graphs over fused kernels; models that are no Llama or Qwen2, "
        "or quantised as int8, run them as ever. The line that says that the server is ready names the way.",
    )
    native_kernels: bool = Field(
        True,
        description="On a CPU with AVX-512 and its bf16 instructions, compute Llama and Qwen2 models in bf16 by "
        "kernels that the first start compiles: several times faster, and what a request gets does not depend on "
        "others. The line that says that the server is ready names the way.",
    )
    threads: Count = Field(0, description="CPU threads for the model; 0 is one per core.")

    # The dictionary and what is watched
    sae: Annotated[str, AfterValidator(_dictionary)] = Field(
        EMBEDDED,
        description="Sparse autoencoder to read with: `embedded` (for the embedded model), a checkpoint folder, or "
        "`none`: probe monitors alone, no features.",
    )
    hook_point: Annotated[str, AfterValidator(_hook_point)] | None = Field(
        None,
        description="Where raw vectors steer a model that is served without a dictionary, like `layers.15.output`. "
        "Unset: steering is refused there. A dictionary has its own place, and no other can be named then.",
    )
    allow_unverified: bool = Field(
        False,
        description="Serve although the dictionary, or a monitor pack, was made for other weights or another "
        "quantisation. Requests are then told that readings are unverified.",
    )
    features_file: File | None = Field(
        None, description="File of named features. Unset: `features.json` beside the dictionary."
    )
    monitor_packs: ExistingFolder | None = Field(
        None,
        description="Folder of monitor packs (`*.pack.yaml`) to load besides those that ship for the served model; one "
        "of the same name replaces a shipped one.",
    )
    shipped_monitors: bool = Field(True, description="Load the monitor packs that ship for the served model.")
    reasoning_delimiters: Annotated[str, AfterValidator(_delimiters)] = Field(
        "auto",
        description="What encloses reasoning in replies, for monitors that score it by itself: `OPENING CLOSING`, "
        "several pairs joined by commas; `none`; or `auto`, those known ones that stand in the model's chat template "
        "or vocabulary, else `<think> </think>`.",
    )
    catalogue_file: File | None = Field(
        None,
        description="Latent catalogue: figures, explanations and examples of every latent. Unset: `catalogue.sqlite` "
        "beside the dictionary, if there is one.",
    )
    top_features_cap: int = Field(
        TOP_FEATURES_LIMIT,
        ge=0,
        le=TOP_FEATURES_LIMIT,
        description="Most top features per token that a request may ask for; 0 refuses them.",
    )
    max_steering_relative_norm: float = Field(
        20.0,
        gt=0,
        allow_inf_nan=False,
        description="Largest steering that is accepted, as ||delta|| / ||residual||.",
    )

    # Where it listens, and who may talk to it
    host: Annotated[str, AfterValidator(_plain_host)] = Field(
        "127.0.0.1", description="Address to listen on, for gRPC and HTTP. Any but loopback needs TLS or `insecure`."
    )
    grpc_port: Port = Field(50051, description="Port of the gRPC server; 0 is any free one.")
    http_port: Port = Field(9464, description="Port of `/metrics` and `/healthz`, plain HTTP; 0 is any free one.")
    insecure: bool = Field(False, description="Allow to listen beyond loopback without TLS.")
    tls_certificate: File | None = Field(None, description="PEM file with the server's certificate chain.")
    tls_key: File | None = Field(None, description="PEM file with the certificate's private key.")
    api_keys_file: File | None = Field(
        None, description="File with the API keys that are accepted, one per line. Unset: no key is asked for."
    )
    reflection: bool = Field(True, description="Offer gRPC server reflection.")

    # Capacity
    slots: Count = Field(0, description="Requests that run at once; 0 is sized from memory.")
    context_length: Count = Field(
        0, description="Tokens a request may fill, prompt and reply; 0 is from the model and memory."
    )
    memory_fraction: float = Field(
        0.5, gt=0, le=1, description="Share of the free memory that the key-value cache may take."
    )
    max_queued_requests: PositiveCount = Field(64, description="Requests that may wait for a slot.")
    max_queued_prompt_tokens: PositiveCount = Field(65536, description="Prompt tokens that may wait for a slot.")
    prefill_chunk_tokens: PositiveCount = Field(
        256,
        description="Prompt tokens read per engine step, at most. Smaller: steadier streams; larger: faster prompts. "
        "With native kernels, fewer are read while streams are written: as many as take as long as a token, "
        "beside the token's own pass, so that streams write at half their speed meanwhile.",
    )

    # A request's limits
    max_new_tokens_default: PositiveCount = Field(256, description="Tokens to generate where a request does not say.")
    max_request_seconds: PositiveSeconds = Field(
        600.0, description="Longest time a request may take, waiting included, whatever its own deadline is."
    )
    slow_consumer_seconds: PositiveSeconds = Field(
        30.0, description="A client that has not read its stream for so long loses it."
    )

    # The alert journal
    journal: Annotated[str, AfterValidator(_journal_file)] | None = Field(
        None,
        min_length=1,
        description="File that every alert is kept in before anybody is told of it; `none`, or the flag "
        "`--no-journal`, keeps none. Unset: `alerts-PORT.sqlite` in `$XDG_STATE_HOME/telltale` or "
        "`~/.local/state/telltale`.",
    )
    journal_text: bool = Field(
        True,
        description="Keep the text that an alert is about. Without, hashes with a key that lies beside the journal.",
    )
    journal_forward: Annotated[SecretStr, AfterValidator(_database_url)] | None = Field(
        None,
        description="PostgreSQL that gets a copy of every entry: `postgresql://USER@HOST/DATABASE`. With a password it "
        "belongs into the variable or the file: others can read flags in `ps`.",
    )
    journal_max_days: Days = Field(0.0, description="Delete entries that are older than so many days; 0 keeps all.")
    journal_max_alerts: Count = Field(0, description="Keep so many of the newest alerts; 0 keeps all.")

    # Life and death
    stall_seconds: PositiveSeconds = Field(
        60.0, description="With requests running and no step for so long, the health service says NOT_SERVING."
    )
    drain_delay_seconds: Seconds = Field(
        0.0, description="After SIGTERM, time to go on accepting requests while load balancers take note."
    )
    drain_timeout_seconds: Seconds = Field(
        60.0, description="Then, time for running requests to finish before they are ended."
    )
    log_format: Literal["text", "json"] = Field("text", description="Lines for people, or one JSON object per line.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @model_validator(mode="after")
    def _refuse_clashes(self) -> "Settings":
        clashes = [
            *self._tls_clashes(),
            *self._port_clashes(),
            *self._dictionary_clashes(),
            *self._journal_clashes(),
        ]
        if clashes:
            raise ValueError("\n".join(clashes))
        return self

    def _tls_clashes(self) -> list[str]:
        if bool(self.tls_certificate) != bool(self.tls_key):
            given, missing = ("tls_certificate", "tls_key") if self.tls_certificate else ("tls_key", "tls_certificate")
            return [f"{given} needs {missing}: set both or neither."]
        if not (self.tls_key or self.insecure or is_loopback(self.host)):
            return [
                f"host {self.host} can be reached from other machines without encryption: "
                "set tls_certificate and tls_key, or insecure to allow it."
            ]
        return []

    def _dictionary_clashes(self) -> list[str]:
        if self.sae != NO_DICTIONARY:
            return []
        given = [name for name in ("features_file", "catalogue_file") if getattr(self, name)]
        return [f"{name} needs a dictionary. Got sae none." for name in given]

    def _port_clashes(self) -> list[str]:
        if self.grpc_port and self.grpc_port == self.http_port:
            return [f"grpc_port and http_port must differ. Got {self.grpc_port} for both."]
        return []

    def _journal_clashes(self) -> list[str]:
        if self.journal == NO_JOURNAL and self.journal_forward is not None:
            return ["journal_forward needs a journal: what is sent is sent from there. Got journal none."]
        return []

    @property
    def uses_tls(self) -> bool:
        """Whether the gRPC port is encrypted."""
        return self.tls_key is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. Names other than localhost count as reachable from outside."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
