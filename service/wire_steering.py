"""Steering messages -> specs that the model can carry out."""

import struct
from collections.abc import Sequence
from typing import Any

from telltale.v1 import types_pb2 as pb

from sae_runtime.errors import SteeringError
from sae_runtime.steering_spec import PositionScope, SteeringLimits, SteeringOp, SteeringSpec, StrengthUnit
from service.catalog import Catalog
from service.violations import Violations

MAX_STEERING = 16

_OPS: dict[int, SteeringOp] = {
    pb.STEERING_OP_ADD: SteeringOp.ADD,
    pb.STEERING_OP_SCALE: SteeringOp.SCALE,
    pb.STEERING_OP_SET: SteeringOp.SET,
    pb.STEERING_OP_PROJECT_OUT: SteeringOp.PROJECT_OUT,
    pb.STEERING_OP_CAP: SteeringOp.CAP,
}
_UNITS: dict[int, StrengthUnit] = {
    pb.STRENGTH_UNIT_UNSPECIFIED: StrengthUnit.RAW,
    pb.STRENGTH_UNIT_RAW: StrengthUnit.RAW,
    pb.STRENGTH_UNIT_RELATIVE: StrengthUnit.RELATIVE,
}
_SCOPES: dict[int, PositionScope] = {
    pb.POSITION_SCOPE_UNSPECIFIED: PositionScope.ALL,
    pb.POSITION_SCOPE_ALL: PositionScope.ALL,
    pb.POSITION_SCOPE_PROMPT: PositionScope.PROMPT,
    pb.POSITION_SCOPE_GENERATED: PositionScope.GENERATED,
}


class SteeringReader:
    """Turns steering messages into specs, for one served model and dictionary."""

    def __init__(self, catalog: Catalog, limits: SteeringLimits) -> None:
        self._catalog, self._limits = catalog, limits

    def read(self, specs: Sequence[Any], path: str, wrong: Violations) -> tuple[SteeringSpec, ...]:
        """The operations that are right; what is not is added to `wrong`."""
        if specs and self._catalog.steering_point is None:
            wrong.add(
                path,
                "must be empty, since this server has no dictionary, and no hook point where vectors would steer "
                f"(--hook-point). Got {len(specs)}.",
            )
            return ()
        if len(specs) > MAX_STEERING:
            wrong.add(path, f"must hold at most {MAX_STEERING} operations. Got {len(specs)}.")
            return ()
        read = [self._operation(spec, f"{path}[{i}]", wrong) for i, spec in enumerate(specs)]
        return tuple(spec for spec in read if spec is not None)

    def _operation(self, spec: Any, path: str, wrong: Violations) -> SteeringSpec | None:
        direction = self._direction(spec, path, wrong)
        op = wrong.choice(f"{path}.op", _OPS, spec.op, pb.SteeringOp)
        unit = wrong.choice(f"{path}.unit", _UNITS, spec.unit, pb.StrengthUnit)
        scope = wrong.choice(f"{path}.scope", _SCOPES, spec.scope, pb.PositionScope)
        if direction is None or op is None or unit is None or scope is None:
            return None
        window = (spec.window.start, spec.window.end) if spec.HasField("window") else None
        try:
            read = SteeringSpec(direction, op, spec.strength, unit, scope, window)
            self._limits.check(read)
        except SteeringError as error:
            field, _, description = str(error).partition(" ")
            wrong.add(path if field == "direction" else f"{path}.{field}", f"{description}.")
            return None
        return read

    def _direction(self, spec: Any, path: str, wrong: Violations) -> int | tuple[float, ...] | None:
        match spec.WhichOneof("direction"):
            case "feature":
                return int(spec.feature)
            case "name":
                feature = self._catalog.watchlist.by_name.get(spec.name)
                if feature is None:
                    must = "be the name of a feature" if self._catalog.num_latents else "be unset: no dictionary"
                    wrong.add(f"{path}.name", f"must {must}. Got {spec.name!r}.")
                return None if feature is None else feature.index
            case "vector":
                wanted = 4 * self._catalog.model.d_model
                if len(spec.vector) != wanted:
                    wrong.add(f"{path}.vector", f"must hold {wanted} bytes. Got {len(spec.vector)}.")
                    return None
                return struct.unpack(f"<{wanted // 4}f", spec.vector)
            case _:
                wrong.add(path, "must have a direction: feature, vector or name. Got none.")
                return None
