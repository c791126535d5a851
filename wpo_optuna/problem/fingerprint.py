"""What a problem consists of, written down so that two can be told apart.

A description is a flat mapping from a dotted path to a printable value, for instance
``rpu_config.forward.out_bound: 10.0``; tensors and arrays enter by their hash.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from numbers import Integral, Real
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch

Description = dict[str, str]


def describe(value: object, path: str) -> Description:
    """Describes a value and everything it holds.

    Args:
        value: numbers, strings, enums, tensors, sequences, mappings, classes, functions,
            dataclasses or plain objects, nested at will.
        path: path of the value itself.
    """
    if isinstance(value, Enum):
        return {path: value.name}
    if _is_scalar(value):
        return {path: _written(value)}
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return {path: f"{value.dtype}{list(value.shape)} sha256:{hash_array(value)}"}
    if isinstance(value, Mapping):
        return _describe_items({_key(key): item for key, item in value.items()}, path)
    if isinstance(value, list | tuple):
        return _describe_sequence(value, path)
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        return {path: f"{value.__module__}.{value.__qualname__}"}
    if not hasattr(value, "__dict__"):
        return {path: repr(value)}
    return {path: type(value).__name__} | _describe_items(_attributes(value), path)


def hash_array(array: np.ndarray) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the array's numbers."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def fingerprint(description: Description) -> str:
    """Stable hash of a description: 16 hexadecimal digits."""
    canonical = json.dumps(description, sort_keys=True).encode()
    return hashlib.sha256(canonical).hexdigest()[:16]


def differences(stored: Mapping[str, str], current: Mapping[str, str]) -> list[str]:
    """Says what differs between two descriptions, one phrase per path."""
    phrases = []
    for path in sorted(stored.keys() | current.keys()):
        before, now = stored.get(path, "absent"), current.get(path, "absent")
        if before != now:
            phrases.append(f"{path} was {before}, now {now}")
    return phrases


def _attributes(value: object) -> dict[str, object]:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(vars(value))


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, bool | np.bool_ | Real | str)


def _written(value: Any) -> str:
    """A scalar in words; equal numbers alike, whatever their type: 25 and 25.0 are both "25"."""
    if isinstance(value, bool | np.bool_):
        return repr(bool(value))
    if not isinstance(value, Real):
        return repr(value)
    number = value if isinstance(value, Integral) else float(value)
    return str(int(number)) if number == number // 1 else repr(number)


def _key(key: object) -> str:
    return _written(key) if isinstance(key, Real) else str(key)


def _describe_items(items: Mapping[str, object], path: str) -> Description:
    description: Description = {}
    for name in sorted(items):
        description |= describe(items[name], f"{path}.{name}")
    return description


def _describe_sequence(values: list[Any] | tuple[Any, ...], path: str) -> Description:
    if all(_is_scalar(value) and not isinstance(value, Enum) for value in values):
        return {path: f"[{', '.join(_written(value) for value in values)}]"}
    return _describe_items({str(index): value for index, value in enumerate(values)}, path)
