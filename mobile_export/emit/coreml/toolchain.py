"""coremltools as this machine has it: imported without its talk and its bars, and mended where numpy 2.4 broke it."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

import numpy as np

# What coremltools says on a machine that is no Mac, or of versions it was not tested with; a user can do nothing about it.
TALK = (
    "Failed to load _ML",  # the proxies that run models, on a Mac alone
    "has not been tested with coremltools",  # torch's version: what we test it with
    "is not supported. Minimum required version",  # scikit-learn, which we do not use
    "might lose precision",  # of positions as int32, and none is near 2**31
    "is added again",  # a cache, once for each execution that writes it
)


def coremltools() -> ModuleType:
    """Import coremltools, once mended and quiet."""
    logger = logging.getLogger("coremltools")
    if not any(isinstance(each, _Talk) for each in logger.filters):
        logger.addFilter(_Talk())
    import coremltools
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.mil.passes import pass_pipeline

    pass_pipeline.tqdm = ops._tqdm = lambda steps, *_, **__: steps  # our own progress line says what is under way
    mend_cast()
    return coremltools


class _Talk(logging.Filter):
    """Drops the lines of TALK."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(phrase in record.getMessage() for phrase in TALK)


def mend_cast() -> None:
    """Let the torch frontend cast a constant array of one element to a number.

    coremltools 9.0 calls int(array([5])) there, which numpy refuses since 2.4. tests/test_coreml_toolchain.py fails when
    coremltools no longer needs this.
    """
    from coremltools.converters.mil.frontend.torch import ops

    if getattr(ops._cast, "mended", False):
        return
    stock = ops._cast

    def cast(context: Any, node: Any, dtype: type, dtype_name: str) -> None:
        value = ops._get_inputs(context, node, expected=1)[0]
        if value.can_be_folded_to_const() and isinstance(value.val, np.ndarray) and value.val.size == 1:
            context.add(ops.mb.const(val=dtype(value.val.item()), name=node.name), node.name)
        else:
            stock(context, node, dtype, dtype_name)

    cast.mended = True  # type: ignore[attr-defined]
    ops._cast = cast
