"""Steering in the API's own words: a JSON list of `telltale.v1.Steering`, as protobuf writes it.

[{"name": "lying", "op": "STEERING_OP_SCALE", "strength": 0}]
"""

import json
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from telltale.v1 import types_pb2

from discovery.errors import ElicitError


def read_steering(text: str) -> str:
    """`text` in the one form that all spellings of the same have. ElicitError if it is not a list of operations."""
    wanted = "steering must be a JSON list of operations of telltale.v1.Steering"
    try:
        operations = json.loads(text)
    except ValueError as error:
        raise ElicitError(f"{wanted}, got {text!r}: {error}") from None
    if not isinstance(operations, list) or not operations:
        raise ElicitError(f"{wanted}, at least one, got {text!r}")
    made = []
    for position, operation in enumerate(operations):
        try:
            message = ParseDict(operation, types_pb2.Steering())
        except (ParseError, AttributeError, TypeError) as error:  # the last two of what is no object
            raise ElicitError(f"{wanted}, got {operation!r} at {position}: {error}") from None
        made.append(MessageToDict(message, preserving_proto_field_name=True))
    return json.dumps(made, sort_keys=True, ensure_ascii=False)


def steering_messages(steering: str) -> list[Any]:
    """The operations of what `read_steering` made; none of an empty string."""
    return [ParseDict(operation, types_pb2.Steering()) for operation in json.loads(steering or "[]")]
