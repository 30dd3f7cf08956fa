"""Small chat templates of the kinds that models have, each with what it must write.

Written from the formats as their models document them; each is as short as its kind allows.
"""

from dataclasses import dataclass, field
from typing import Any

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": " What is 1+1? "},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "And é 🙂?"},
    {"role": "assistant", "content": "Yes,\n\nindeed"},
]
WITHOUT_SYSTEM = TALK[1:]
TOOLS = [{"type": "function", "function": {"name": "sum", "description": "Adds <a> & 'b'.", "parameters": {}}}]
CALLS = [
    TALK[1],
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "sum", "arguments": {"a": 1, "b": "ü"}}}],
    },
    {"role": "tool", "content": "2"},
    {"role": "assistant", "content": "It is 2."},
]


@dataclass(frozen=True)
class Kind:
    """A template, a conversation, and the turns of the assistant that it has to mark in it."""

    template: str
    turns: list[str]
    talk: list[dict[str, Any]] = field(default_factory=lambda: TALK)
    tools: list[Any] | None = None
    turn_end: str | None = None
    starts: str = ""


KINDS = {
    "chatml": Kind(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ["It is 2.<|im_end|>", "Yes,\n\nindeed<|im_end|>"],
        turn_end="<|im_end|>",
        starts="<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n What",
    ),
    "llama-2": Kind(
        "{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
        "{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
        "{% for m in loop_messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.index0 == 0 else '') + m.content.strip()"
        " + ' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        [" It is 2. </s>", " Yes,\n\nindeed </s>"],
        turn_end="</s>",
        starts="<s>[INST] <<SYS>>\nBe short.\n<</SYS>>\n\nWhat is 1+1? [/INST] It",
    ),
    "llama-3": Kind(
        "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' +"
        " m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
        ["It is 2.<|eot_id|>", "Yes,\n\nindeed<|eot_id|>"],
        turn_end="<|eot_id|>",
        starts="<s><|start_header_id|>system<|end_header_id|>\n\nBe short.<|eot_id|><|start_header_id|>user",
    ),
    "mistral": Kind(
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
        [" It is 2.</s>", " Yes,\n\nindeed</s>"],
        talk=WITHOUT_SYSTEM,
        turn_end="</s>",
        starts="<s>[INST]  What is 1+1?  [/INST] It",
    ),
    "gemma": Kind(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}"
        "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
        "{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}",
        ["It is 2.<end_of_turn>", "Yes,\n\nindeed<end_of_turn>"],
        talk=WITHOUT_SYSTEM,
        turn_end="<end_of_turn>",
        starts="<s><start_of_turn>user\nWhat is 1+1?<end_of_turn>\n<start_of_turn>model\nIt",
    ),
    "phi-3": Kind(
        "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}",
        ["It is 2.<|end|>", "Yes,\n\nindeed<|end|>"],
        turn_end="<|end|>",
        starts="<|system|>\nBe short.<|end|>\n<|user|>\n What",
    ),
    "zephyr": Kind(
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['content'] +"
        " eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' + message['content'] + eos_token }}"
        "\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        ["It is 2.</s>", "Yes,\n\nindeed</s>"],
        turn_end="</s>",
        starts="<|system|>\nBe short.</s>\n<|user|>\n What is 1+1? </s>\n<|assistant|>\nIt",
    ),
    "qwen with tools": Kind(
        "{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n<tools>' }}{%- for tool in tools %}{{- '\\n' }}"
        "{{- tool | tojson }}{%- endfor %}{{- '\\n</tools><|im_end|>\\n' }}{%- endif %}"
        "{%- for message in messages %}{%- if message.role == 'tool' %}"
        "{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}"
        "{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}"
        '{%- for tool_call in message.tool_calls %}{{- \'\\n<tool_call>\\n{"name": "\' + tool_call.function.name +'
        " '\", \"arguments\": ' }}{{- tool_call.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}"
        "{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
        [
            '\n<tool_call>\n{"name": "sum", "arguments": {"a": 1, "b": "ü"}}\n</tool_call><|im_end|>',
            "It is 2.<|im_end|>",
        ],
        talk=CALLS,
        tools=TOOLS,
        turn_end="<|im_end|>",
        starts='<|im_start|>system\n# Tools\n<tools>\n{"type": "function", "function": {"name": "sum", '
        '"description": "Adds <a> & \'b\'."',
    ),
    "smollm2": Kind(
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\\nYou are a helpful AI assistant.<|im_end|>\\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ["It is 2.<|im_end|>", "Yes,\n\nindeed<|im_end|>"],
        talk=WITHOUT_SYSTEM,
        turn_end="<|im_end|>",
        starts="<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n<|im_start|>user\n What",
    ),
    "vicuna": Kind(
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{{ messages[0]['content'] + ' ' }}"
        "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}"
        "{{ 'USER: ' + m.content.strip() + ' ' if m.role == 'user' else 'ASSISTANT: ' + m.content + eos_token }}"
        "{% endfor %}{{ 'ASSISTANT:' if add_generation_prompt }}",
        [" It is 2.</s>", " Yes,\n\nindeed</s>"],
        turn_end="</s>",
        starts="Be short. USER: What is 1+1? ASSISTANT: It is 2.</s>USER:",
    ),
    "alpaca": Kind(
        "{% for message in messages %}{% if message.role == 'system' %}{{ message.content + '\\n\\n' }}"
        "{% elif message.role == 'user' %}{{ '### Instruction:\\n' + message.content + '\\n\\n' }}"
        "{% else %}{{ '### Response:\\n' + message.content + '\\n\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
        ["It is 2.\n\n", "Yes,\n\nindeed\n\n"],
        starts="Be short.\n\n### Instruction:\n What is 1+1? \n\n### Response:\nIt",
    ),
    "deepseek-like": Kind(  # its prompt opens a thought, which the record of a turn has not
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
        "{{ '<|User|>' + m.content }}{% else %}{{ '<|Assistant|>' + m.content.split('</think>') | last + eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}",
        ["It is 2.</s>", "Yes,\n\nindeed</s>"],
        turn_end="</s>",
        starts="<s>Be short.<|User|> What is 1+1? <|Assistant|>It",
    ),
    "with exceptions and a date": Kind(
        "{%- if not messages %}{{ raise_exception('no messages') }}{% endif %}"
        "{{- strftime_now('%Y')[:2] }}{% for m in messages %}{%- if m.role not in ['system', 'user', 'assistant'] %}"
        "{{ raise_exception('unknown role: ' + m.role) }}{% endif %}"
        "{{ '\\n' + m.role }}> {{ m.content | trim }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '\\nassistant>' }}{% endif %}",
        [" It is 2.</s>", " Yes,\n\nindeed</s>"],
        turn_end="</s>",
        starts="20\nsystem> Be short.</s>\nuser> What",
    ),
    "with generation blocks": Kind(
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ["It is 2.<|im_end|>", "Yes,\n\nindeed<|im_end|>"],
        turn_end="<|im_end|>",
        starts="<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n What",
    ),
}
