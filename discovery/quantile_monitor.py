"""A monitor on one named feature, its threshold a plain quantile: to begin with, and bounding nothing."""

from torch import Tensor

from discovery.quantile_threshold import quantile_threshold, reply_statistics
from monitors.components import WeightedFeature
from monitors.monitor_spec import Role
from monitors.pack import MonitorPack
from monitors.pack_parts import Bindings, PackCalibration, PackComponent
from monitors.thresholds import Levels, LevelThreshold, Stratum, Thresholds
from monitors.watchlist import NamedFeature
from sae_runtime.checkpoint import Manifest

_WINDOW, _MIN_TOKENS, _LONGEST = 16, 8, 1024
_LIMITS = "Its threshold bounds no rate of false alarms at any length of reply."


def monitor_of(
    feature: NamedFeature,
    replies: list[Tensor],
    column: int,
    manifest: Manifest,
    sources: str,
    *,
    roles: tuple[Role, ...] = ("assistant",),
) -> MonitorPack:
    """A monitor on one feature, its threshold the plain 99 % quantile over benign replies."""
    statistics = reply_statistics(replies, column, feature.reference_scale, _WINDOW, _MIN_TOKENS)
    found = quantile_threshold(statistics)
    # A latent that is silent on benign replies leaves nothing to set a threshold by.
    threshold = round(max(found.threshold, 0.01), 4)
    level = LevelThreshold(round(1 - found.quantile, 6), threshold, (_LONGEST,))
    source = (
        f"The plain {found.quantile:.0%} quantile of the largest rolling mean over {found.num_replies} benign "
        f"replies ({sources}; largest {found.max_statistic:.3f}). Not a validated calibration."
    )
    return MonitorPack(
        name=feature.name,
        version=1,
        kind="feature",
        description=f"Rolling mean of the feature {feature.name}: {feature.description}.",
        limits="Nothing shows that the feature is what its name says. " + _LIMITS,
        validated=False,
        validated_reason="Never evaluated, and its threshold is one quantile for replies of all lengths.",
        bindings=Bindings(
            model_name=manifest.model_name,
            model_sha256=manifest.model_sha256,
            quantization=manifest.quantization,
            sae_sha256=manifest.sae_sha256,
        ),
        components=(
            PackComponent(
                name=feature.name,
                reads=f"The latent {feature.index}, in units of its reference scale.",
                features=(WeightedFeature(feature.index, 1.0, feature.reference_scale),),
                transform="linear",
            ),
        ),
        window=_WINDOW,
        min_tokens=_MIN_TOKENS,
        cooldown_tokens=_WINDOW,
        roles=roles,
        thresholds=Thresholds((Stratum(_LONGEST, 0.0),), Levels(level, None), round(0.8 * threshold, 4)),
        calibration=PackCalibration(
            method="plain_quantile",
            source=source,
            figures={"num_replies": found.num_replies, "max_statistic": found.max_statistic},
        ),
    )


def wrong_firings(replies: list[Tensor], threshold: float, column: int, scale: float) -> dict[str, float | int]:
    """How often a monitor of that threshold would fire on replies that it ought to leave alone."""
    statistics = reply_statistics(replies, column, scale, _WINDOW, _MIN_TOKENS)
    fired = sum(statistic > threshold for statistic in statistics)
    return {"replies": len(statistics), "fired": fired, "share": round(fired / max(len(statistics), 1), 4)}
