"""The constant methods a stock runner asks a .pte for.

Source: executorch `extension/llm/runner/constants.h` and `llm_runner_helper.cpp`.
"""

from __future__ import annotations

from typing import Protocol

from mobile_export.families.spec import DecoderSpec, RwkvSpec
from mobile_export.sharing import SharingPlan


class Calls(Protocol):
    """What a .pte takes in a call: PteOptions' fields."""

    @property
    def max_context(self) -> int:
        """KV rows."""

    @property
    def max_prompt(self) -> int:
        """Most tokens in one call."""

    @property
    def attention(self) -> str:
        """ "custom" where the runtime's llama operators do it."""


def constant_methods(
    spec: DecoderSpec | RwkvSpec, plan: SharingPlan, options: Calls, bos_id: int | None, eos_ids: tuple[int, ...]
) -> dict[str, object]:
    """Method name -> value.

    `use_kv_cache`: calls continue a text, whatever is kept of it. `get_n_layers` is the number of stored blocks,
    `get_n_executions` of executions; no stock runner decides on either.
    """
    methods: dict[str, object] = {
        "get_max_seq_len": options.max_prompt,
        "get_max_context_len": options.max_context,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": options.attention == "custom",
        "enable_dynamic_shape": options.max_prompt > 1,
        "get_vocab_size": spec.vocab_size,
        "get_n_layers": len(plan.blocks),
        "get_n_executions": len(plan.schedule),
    }
    if isinstance(spec, DecoderSpec):
        methods |= {"get_head_dim": spec.head_dim, "get_n_kv_heads": spec.num_key_value_heads}
    if eos_ids:
        methods["get_eos_ids"] = list(eos_ids)
    if bos_id is not None:
        methods["get_bos_id"] = bos_id
    return methods
