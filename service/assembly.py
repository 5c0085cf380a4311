"""Puts a server's parts together from its settings: model, dictionary, named features, slots sized from memory.

Everything that can be wrong with them is found here, before a port is opened, and raised as one of the documented
errors of `sae_runtime`, `monitors` and `service`.
"""

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from monitors.pack_parts import Served
from sae_runtime.chat_template import template_sha256
from sae_runtime.checkpoint import load_manifest
from sae_runtime.errors import ModelError
from sae_runtime.fused_blocks import FusedBlocks
from sae_runtime.hook_point import HookPoint
from sae_runtime.language_model import LanguageModel, load_language_model
from sae_runtime.latent_reader import LatentReader, NoDictionary
from sae_runtime.native_sae import NativeSAE
from sae_runtime.probes import Probe, ProbeSet
from sae_runtime.static_reading import StaticReading
from sae_runtime.steering_spec import SteeringLimits
from sae_runtime.tap import Tap
from sae_runtime.weights import available_memory_bytes
from service.catalog import Catalog, ModelFacts, what_is_served
from service.config import Settings
from service.cuda_graphs import Recorder
from service.decode_step import Machinery
from service.fixed_decode import FixedDecode
from service.memory_plan import MemoryPlan, process_bytes
from service.model_runner import ModelRunner, largest_norm
from service.monitor_packs import ServedMonitor, added_monitors, merged, shipped_monitors
from service.served_dictionary import dictionary_folder, load_dictionary
from service.slot_cache import SlotCache

logger = logging.getLogger(__name__)

DEFAULT_SLOTS = 16
# With less room per request than this, fewer slots are the better use of the memory.
_MIN_CONTEXT_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class Parts:
    """What the engine and the servicers are made of."""

    runner: ModelRunner
    catalog: Catalog
    steering_limits: SteeringLimits
    slots: int
    context_length: int
    planned_memory: MemoryPlan


def assemble(settings: Settings, *, progress: bool = False) -> Parts:
    """Load and check everything. ModelError, CheckpointError or MonitorError say what is wrong."""
    libraries_bytes = process_bytes()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    folder = dictionary_folder(settings)
    if folder is not None:
        load_manifest(folder)  # before the model, which takes longer
    model = load_language_model(
        settings.model,
        quantization=settings.quantization,
        dtype=settings.dtype,
        device=settings.device,
        cache_dir=settings.cache_dir,
        expected_sha256=settings.model_sha256,
        progress=progress,
        native_kernels=settings.native_kernels,
    )
    facts = model_facts(model)
    dictionary = load_dictionary(settings, folder, facts, model.device)
    manifest = dictionary.manifest
    monitors = _load_monitors(settings, what_is_served(facts, manifest))
    if manifest is None and not monitors:
        logger.warning("there is no dictionary and no monitor: nothing is read of what the model writes")
    tap = Tap(model.model, dictionary.tapped, facts.d_model)
    slots, context_length, cache_bytes = _size(settings, model)
    probes, cache = make_probes(model, tap, monitors), _make_cache(model, slots, context_length)
    resid_norm_mean = None if manifest is None else manifest.resid_norm_mean
    reader: LatentReader = dictionary.sae
    if model.blocks is not None and not isinstance(dictionary.sae, NoDictionary):
        reader = NativeSAE.of(dictionary.sae, model.blocks.library)
    fixed = _fixed_decode(settings, model, reader, tap, cache, probes, largest_norm(resid_norm_mean))
    kernels_bytes = 0 if fixed is None else fixed.machinery.num_bytes
    kernels_bytes += reader.num_bytes if isinstance(reader, NativeSAE) else 0
    kernels_bytes += 0 if model.blocks is None else model.blocks.num_bytes(context_length)
    return Parts(
        runner=ModelRunner(model, reader, tap, cache, resid_norm_mean=resid_norm_mean, probes=probes, fixed=fixed),
        catalog=dictionary.catalog(facts, monitors),
        steering_limits=dictionary.steering_limits(settings.max_steering_relative_norm),
        slots=slots,
        context_length=context_length,
        planned_memory=MemoryPlan(
            weights=model.weights_bytes,
            kernels=kernels_bytes,
            dictionary=dictionary.num_bytes,
            keys_and_values=cache_bytes,
            libraries=libraries_bytes if model.device.type == "cpu" else 0,
        ),
    )


def model_facts(model: LanguageModel) -> ModelFacts:
    return ModelFacts(
        identity=model.identity,
        num_layers=model.num_layers,
        d_model=model.d_model,
        vocab_size=model.vocab_size,
        context_length=model.context_length,
        eos_token_ids=tuple(sorted(model.eos_token_ids)),
        chat_template_sha256=template_sha256(model.tokenizer),
    )


def make_probes(model: LanguageModel, tap: Tap, monitors: Sequence[ServedMonitor]) -> ProbeSet | None:
    """The probes of all monitors, with their taps; None if there are none."""
    probes = [
        Probe(probe.name, HookPoint.parse(probe.hook_point), probe.direction, probe.bias)
        for monitor in monitors
        for probe in monitor.pack.probes()
    ]
    return ProbeSet(model.model, probes, shared=tap, device=model.device) if probes else None


def _load_monitors(settings: Settings, served: Served) -> tuple[ServedMonitor, ...]:
    """Shipped packs of the served model, and those of the operator's folder."""
    unverified = settings.allow_unverified
    shipped = shipped_monitors(served, allow_unverified=unverified) if settings.shipped_monitors else []
    folder = settings.monitor_packs
    added = [] if folder is None else added_monitors(folder, served, allow_unverified=unverified)
    return merged(shipped, added)


def _size(settings: Settings, model: LanguageModel) -> tuple[int, int, int]:
    """Slots, positions per slot, and the bytes they take. ModelError if what was asked for does not fit."""
    per_position = _bytes_per_position(model)
    available = available_memory_bytes(model.identity.device)
    budget = int(available * settings.memory_fraction) // per_position
    longest = settings.context_length or model.context_length
    if not 2 <= longest <= model.context_length:
        raise ModelError(f"context_length must lie in 2..{model.context_length}, the model's, got {longest}")
    slots = settings.slots or DEFAULT_SLOTS
    if not settings.slots:
        while slots > 1 and budget // slots < min(longest, _MIN_CONTEXT_LENGTH):
            slots //= 2
    context_length = settings.context_length or min(longest, budget // slots)
    if context_length < 2 or slots * context_length > budget:
        needed_gib = slots * max(context_length, 2) * per_position / 2**30
        raise ModelError(
            f"{slots} slots of {max(context_length, 2)} tokens need {needed_gib:.2f} GiB for keys and values, but "
            f"memory_fraction {settings.memory_fraction:g} of the free {available / 2**30:.2f} GiB allows "
            f"{budget * per_position / 2**30:.2f} GiB"
        )
    return slots, context_length, slots * context_length * per_position


def _fixed_decode(
    settings: Settings,
    model: LanguageModel,
    reader: LatentReader,
    tap: Tap,
    cache: SlotCache,
    probes: ProbeSet | None,
    longest: float,
) -> FixedDecode | None:
    """What plays decode passes as CUDA graphs; None where that is not possible, or not wanted."""
    if model.device.type != "cuda" or not settings.cuda_graphs:
        return None
    if importlib.util.find_spec("triton") is None:
        logger.warning("decode passes are run eagerly: CUDA graphs need triton")
        return None
    try:
        fused = FusedBlocks(model.model)
    except ValueError as error:
        logger.warning("decode passes are run eagerly, since this model can't be played as CUDA graphs: %s", error)
        return None
    machinery = Machinery(model.model, tap, cache, StaticReading(reader), probes, longest, fused)
    return FixedDecode(machinery, model.device, record=Recorder(model.device).record)


def _bytes_per_position(model: LanguageModel) -> int:
    config = model.model.config
    return SlotCache.bytes_per_position(
        model.num_layers, config.num_key_value_heads, _head_dim(model), model.model.dtype
    )


def _head_dim(model: LanguageModel) -> int:
    config = model.model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _make_cache(model: LanguageModel, slots: int, context_length: int) -> SlotCache:
    return SlotCache(
        num_layers=model.num_layers,
        num_slots=slots,
        num_heads=model.model.config.num_key_value_heads,
        num_positions=context_length,
        head_dim=_head_dim(model),
        dtype=model.model.dtype,
        device=model.device,
        with_scratch=model.device.type == "cuda",
    )
