"""genai_config.json: what onnxruntime-genai reads to run the folder as it is.

Source: onnxruntime-genai `src/config.h` and its `models/builders/base.py`.
"""

from __future__ import annotations

from mobile_export.families.spec import DecoderSpec

FILE = "genai_config.json"


def genai_config(
    spec: DecoderSpec,
    slots: int,
    max_context: int,
    model_file: str,
    bos_id: int | None,
    eos_ids: tuple[int, ...],
    *,
    in_place: bool,
) -> dict[str, object]:
    """The configuration as plain values.

    Args:
        slots: KV slots, which is what the runtime loops over as `num_hidden_layers`.
        max_context: the longest sequence; the runtime allocates the whole KV cache for it when it starts.
        in_place: the attention operator writes new rows into the cache it is given.
    """
    decoder = {
        # Threads that spin between operators cost twice the CPU time, and wall time too where others want the cores.
        "session_options": {"log_id": "onnxruntime-genai", "session.intra_op.allow_spinning": "0", "provider_options": []},
        "filename": model_file,
        "head_size": spec.head_dim,
        "hidden_size": spec.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": spec.num_attention_heads,
        "num_hidden_layers": slots,
        "num_key_value_heads": spec.num_key_value_heads,
    }
    eos = list(eos_ids) or [spec.vocab_size]  # no such id: the runtime insists on one, and then nothing stops it
    model: dict[str, object] = {
        "bos_token_id": eos[0] if bos_id is None else bos_id,
        "context_length": max_context,
        "decoder": decoder,
        "eos_token_id": eos,
        "pad_token_id": eos[0],
        "type": "llama",  # which loop drives the decoder; every family here has the same
        "vocab_size": spec.vocab_size,
    }
    search = {"do_sample": False, "max_length": max_context, "past_present_share_buffer": in_place}
    return {"model": model, "search": search}
