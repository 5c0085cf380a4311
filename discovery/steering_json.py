"""Steering in the API's own words: a JSON list of `telltale.v1.Steering`, as protobuf writes it.

[{"name": "lying", "op": "STEERING_OP_SCALE", "strength": 0}]
"""

import json
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from telltale.v1 import types_pb2

from discovery.errors import ElicitError

_WANTED = "steering must be a JSON list of operations of telltale.v1.Steering"


def read_steering(text: str) -> str:
    """`text` in the one form that all spellings of the same have. ElicitError if it is not a list of operations."""
    try:
        operations = json.loads(text)
    except ValueError as error:
        raise ElicitError(f"{_WANTED}, got {text!r}: {error}") from None
    if not isinstance(operations, list) or not operations:
        raise ElicitError(f"{_WANTED}, at least one, got {text!r}")
    made = [_operation(operation, position) for position, operation in enumerate(operations)]
    return json.dumps(made, sort_keys=True, ensure_ascii=False)


def _operation(operation: Any, position: int) -> dict[str, Any]:
    got = f"got {operation!r} at {position}"
    if not isinstance(operation, dict):
        raise ElicitError(f"{_WANTED}, {got}")
    try:
        message = ParseDict(operation, types_pb2.Steering())
    except ParseError as error:
        raise ElicitError(f"{_WANTED}, {got}: {error}") from None
    if message.WhichOneof("direction") is None:
        raise ElicitError(f"{_WANTED}, each with feature, vector or name, {got}")
    if message.op not in types_pb2.SteeringOp.values() or message.op == types_pb2.STEERING_OP_UNSPECIFIED:
        known = ", ".join(value.name for value in types_pb2.SteeringOp.DESCRIPTOR.values if value.number)
        raise ElicitError(f"{_WANTED}, each with an op of {known}, {got}")
    made: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    # A strength of 0 would be left out, as all zeros are; it takes a feature out.
    return made if message.op == types_pb2.STEERING_OP_PROJECT_OUT else {"strength": message.strength, **made}


def steering_messages(steering: str) -> list[Any]:
    """The operations of what `read_steering` made; none of an empty string."""
    return [ParseDict(operation, types_pb2.Steering()) for operation in json.loads(steering or "[]")]
