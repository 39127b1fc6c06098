"""Chat templates as known models define them, and templates that do more than plain strings can say.

Each puts on a conversation what its model's card, or the template beside its tokenizer, puts there.
"""

from __future__ import annotations

from mobile_export.checkpoint.chat_template import ChatTemplate

LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
)
ASK = "{% if add_generation_prompt %}"

KNOWN = {
    "smollm2": ChatTemplate(  # ChatML with a system text of its own, HuggingFaceTB/SmolLM2-135M-Instruct
        "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
        "{% endif %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        + ASK
        + "{{ '<|im_start|>assistant\n' }}{% endif %}",
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    ),
    "llama2": ChatTemplate(  # meta-llama/Llama-2-7b-chat: the system text lies within the first user turn
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
        "{% else %}{% set turns = messages %}{% endif %}"
        + ALTERNATE.replace("messages", "turns")
        + "{% set text = m.content %}"
        "{% if loop.first and system is defined %}{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + text %}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        LLAMA,
    ),
    "llama3": ChatTemplate(  # meta-llama/Meta-Llama-3-8B-Instruct
        "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
        "+ m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}"
        "{% endfor %}" + ASK + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    ),
    "gemma": ChatTemplate(  # google/gemma-2-2b-it: takes no system text
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + ALTERNATE
        + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' "
        "+ m.content | trim + '<end_of_turn>\n' }}{% endfor %}" + ASK + "{{ '<start_of_turn>model\n' }}{% endif %}",
        {"bos_token": "<bos>", "eos_token": "<eos>"},
    ),
    "gemma3": ChatTemplate(  # google/gemma-3-1b-it: the system text is the beginning of the first user's
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
        "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
        + ALTERNATE.replace("messages", "turns")
        + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' + (first if loop.first else '') "
        "+ m.content | trim + '<end_of_turn>\n' }}{% endfor %}" + ASK + "{{ '<start_of_turn>model\n' }}{% endif %}",
        {"bos_token": "<bos>", "eos_token": "<eos>"},
    ),
    "zephyr": ChatTemplate(  # HuggingFaceH4/zephyr-7b-beta, TinyLlama-1.1B-Chat
        "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
        "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n"
        "{% elif m['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        LLAMA,
    ),
    "phi3": ChatTemplate(  # microsoft/Phi-3-mini-4k-instruct
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
        {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
    ),
    "mistral": ChatTemplate(  # mistralai/Mistral-7B-Instruct-v0.2: takes no system text
        "{{ bos_token }}" + ALTERNATE + "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}",
        LLAMA,
    ),
    "mistral3": ChatTemplate(  # mistralai/Mistral-7B-Instruct-v0.3: the system text goes into the last user turn
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
        "{% for m in turns %}{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + (system + '\n\n' if loop.last and system is defined else '') + m['content'] + '[/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
        LLAMA,
    ),
    "llama3.2": ChatTemplate(  # meta-llama/Llama-3.2-1B-Instruct: a date, which is fixed where nobody tells it
        "{{ bos_token }}{% if not date_string is defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' + date_string "
        "+ '\n\n' + system + '<|eot_id|>' }}"
        "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim "
        "+ '<|eot_id|>' }}{% endfor %}" + ASK + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    ),
}

ONE_MESSAGE = "{{% for m in messages %}}[{{{{ m.role }}}}]{{{{ {} }}}}{{% endfor %}}[assistant]"
MORE_THAN_STRINGS = {
    "counts the turns": "{% for m in messages %}[{{ m.role }} {{ loop.index }}]{{ m.content }}{% endfor %}[assistant]",
    "keeps the last turn only": "[user]{{ messages[-1].content }}[assistant]",
    "writes in capitals": ONE_MESSAGE.format("m.content | upper"),
    "escapes": ONE_MESSAGE.format("m.content | tojson"),
    "says it twice": ONE_MESSAGE.format("m.content + m.content"),
    "writes other quotes": ONE_MESSAGE.format("m.content | replace('\"', '')"),
    "looks into the text": ONE_MESSAGE.format("m.content | replace('<|im_end|>', '')"),
    "begins anew after three turns": "{% for m in messages[-5:] %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]",
    "turns the order round": "{% for m in messages | reverse %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]",
    "is constant": "x",
    "is empty": "",
    "takes no second turn": "{% if messages | length > 1 %}{{ raise_exception('one') }}{% endif %}{{ messages[0].content }}",
    "takes none": "{{ raise_exception('no') }}",
    "is damaged": "{% for m in messages %}",
    "adds a number to a text": "{{ messages[0].content + 1 }}",
    "reaches out of the sandbox": "{{ messages.__class__.__mro__ }}",
    "has no end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "wants the date": "{{ strftime_now('%Y') }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]",
}

__all__ = ["KNOWN", "MORE_THAN_STRINGS"]
