"""Steering messages to specs. What is refused, and under which field, stands in `test_wire_requests.WRONG`."""

import struct

import tiny
from google.protobuf import text_format
from serving import catalog
from telltale.v1 import generation_pb2, types_pb2

from sae_runtime.steering_spec import PositionScope, SteeringOp, SteeringSpec, StrengthUnit
from service.violations import Violations
from service.wire_steering import SteeringReader

READER = SteeringReader(catalog(tiny.language_model()), tiny.limits(tiny.sae()))


def read(text):
    """The specs of the `steering { ... }` in `text`, and the fields that are wrong."""
    wrong = Violations()
    specs = READER.read(text_format.Parse(text, generation_pb2.GenerateRequest()).steering, "here", wrong)
    return specs, [violation.field for violation in wrong.found]


def test_steering_arrives_in_the_order_given():
    assert read(
        """steering { op: STEERING_OP_SCALE feature: 2 strength: 0 scope: POSITION_SCOPE_PROMPT }
        steering { op: STEERING_OP_SET name: 'calm' strength: 3 scope: POSITION_SCOPE_GENERATED }
        steering { op: STEERING_OP_CAP feature: 4 strength: 2 unit: STRENGTH_UNIT_RELATIVE scope: POSITION_SCOPE_ALL
                   window { start: 3 end: 9 } }
        steering { op: STEERING_OP_PROJECT_OUT feature: 5 unit: STRENGTH_UNIT_RAW }"""
    ) == (
        (
            SteeringSpec(2, SteeringOp.SCALE, 0.0, scope=PositionScope.PROMPT),
            SteeringSpec(40, SteeringOp.SET, 3.0, scope=PositionScope.GENERATED),
            SteeringSpec(4, SteeringOp.CAP, 2.0, StrengthUnit.RELATIVE, PositionScope.ALL, (3, 9)),
            SteeringSpec(5, SteeringOp.PROJECT_OUT),
        ),
        [],
    )


def test_a_vector_is_little_endian_floats():
    numbers = tuple(float(i) - 4.5 for i in range(tiny.D_MODEL))
    vector = struct.pack(f"<{tiny.D_MODEL}f", *numbers)
    message = types_pb2.Steering(op=types_pb2.STEERING_OP_CAP, vector=vector, strength=1)
    assert READER.read([message], "here", Violations())[0].direction == numbers


def test_what_is_wrong_is_told_under_its_own_path_and_the_rest_is_kept():
    specs, wrong = read(
        """steering { op: STEERING_OP_ADD feature: 64 }
        steering { op: STEERING_OP_ADD feature: 1 strength: 2 }
        steering { feature: 3 unit: 9 }"""
    )
    assert specs == (SteeringSpec(1, SteeringOp.ADD, 2.0),)
    assert wrong == ["here[0].feature", "here[2].op", "here[2].unit"]
