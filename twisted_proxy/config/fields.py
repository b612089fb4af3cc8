"""Fields of the configuration's values that hold what a `Kind` allows, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import attrs

from twisted_proxy.config.values import Kind

T = TypeVar("T")


def checked(kind: Kind[Any], default: T, *, secret: bool = False) -> T:
    """An attrs field that takes what ``kind`` takes; anything else is a `ValueError` that names the field.

    With a ``default`` of `None`, an empty text is `None`. A ``secret`` is not in the `repr`.
    """

    # For a type checker this is the default, as with attrs.field itself: `x: float = checked(...)` is a float.
    def check(value: object, _: object, field: attrs.Attribute[Any]) -> Any:
        if default is None and value in (None, ""):
            return None
        try:
            return _read(kind, value, empty=not default)
        except ValueError as error:
            # The value is not repeated: it may be a secret, or hold one.
            raise ValueError(f"{field.name}: the value {kind.explain(str(error))}") from None

    converter = attrs.Converter(check, takes_self=True, takes_field=True)
    made: T = attrs.field(default=default, converter=converter, repr=not secret)
    return made


def _read(kind: Kind[Any], value: object, *, empty: bool) -> Any:
    if not kind.many:
        return kind.parse(value)
    if kind.pairs and isinstance(value, Mapping):
        value = value.items()
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError("is not a mapping" if kind.pairs else "is not a list")
    items = tuple(kind.parse(item) for item in value)
    if not items and not empty:
        raise ValueError("is empty")
    return dict(items) if kind.pairs else items
