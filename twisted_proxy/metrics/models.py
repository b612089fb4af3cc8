"""Names of models as label values: a bounded number of them, and nothing that somebody just made up."""

from __future__ import annotations

import re
from typing import Final

MAX_MODELS: Final = 20
OTHER: Final = "other"
NONE: Final = "none"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,99}")


class ModelLabels:
    """
    Decides which models have a label of their own.

    A client can name whatever it likes, and each label value costs memory here, and in the monitoring system for good.
    So a name becomes one when an upstream has taken it, if it looks like one, and while there is room. Every other is
    `OTHER`.
    """

    def __init__(self) -> None:
        self._known: set[str] = set()

    def label(self, name: str | None, *, taken: bool) -> str:
        """
        The label value of a model.

        :param name: ``None``: the request named none.
        :param taken: whether an upstream has answered as one does that knows it.
        """
        if name in self._known:
            assert name is not None
            return name
        if name is None:
            return NONE
        if taken and len(self._known) < MAX_MODELS and _NAME.fullmatch(name) and name not in (OTHER, NONE):
            self._known.add(name)
            return name
        return OTHER
