"""Chat templates in the style of those that are used, and SentencePiece tokenizers of each kind."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.fixtures import tokenizers

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
ENDS_IN_SPACE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST] ' }}{% else %}{{ m['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PHI3 = ZEPHYR.replace("eos_token", "'<|end|>'")
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Drops the thoughts of earlier turns; the last turn keeps its own, or has an empty block.
REASONING = (
    "{%- for m in messages %}{%- if m.role != 'assistant' %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- else %}"
    "{%- set content = m.content or '' %}{%- set thought = m.reasoning_content or '' %}"
    "{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{%- set content = content.split('</think>')[-1].lstrip() %}{%- endif %}"
    "{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.last %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}"
    "{{- content }}{%- for call in m.tool_calls or [] %}"
    "{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
OPENS_THINK = tokenizers.CHATML.replace(
    "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}"
)
# Puts the system's text into the last turn, which is another once an answer follows.
SYSTEM_LAST = (
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (messages[0].content + '\n' if loop.last else '') + m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# DeepSeek-R1's way: calls beside null content alone, arguments as text, thoughts cut from answers.
NULL_BESIDE_CALLS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}"
    "{% elif m['role'] == 'tool' %}{{ '<|output|>' + m['content'] }}"
    "{% elif m['content'] is none %}{{ '<|answer|>' }}{% for c in m['tool_calls'] %}"
    "{{ '<|call|>' + c['function']['name'] + '\n' + c['function']['arguments'] }}{% endfor %}"
    "{{ '<|im_end|>' }}"
    "{% else %}{{ '<|answer|>' + m['content'].split('</think>')[-1] + '<|im_end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|answer|><think>\n' }}{% endif %}"
)
# Qwen3-Thinking's way: the generation prompt opens the block that an answer without thoughts lacks.
ALWAYS_THINKS = REASONING.replace(
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}",
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}",
)
# No end of an answer: what begins the next turn ends it. GLM-4 writes no role's token in full.
GLM4 = (
    "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>' + (m.metadata or '') + '\n' }}"
    "{{ m.content or (m.tool_calls[0].function | tojson) }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
GLM4_0414 = (
    "[gMASK]<sop>{% for m in messages %}{% if m.role == 'system' %}<|system|>\n{{ m.content }}"
    "{% elif m.role == 'user' %}<|user|>\n{{ m.content }}{% elif m.role == 'assistant' %}"
    "<|assistant|>\n{{ m.content or (m.tool_calls[0].function | tojson) }}"
    "{% elif m.role == 'tool' %}<|observation|>\n{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
GLM4_ADDED = (
    "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
)  # fmt: skip
NEMOTRON = (
    "{{ '<extra_id_0>System' }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '\n' + m.content }}{% endif %}{% endfor %}{{ '\n\n' }}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<extra_id_1>User\n' + m.content.strip() + '\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<extra_id_1>Assistant\n' + m.content.strip() + '\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<extra_id_1>Assistant\n' }}{% endif %}"
)
NEMOTRON_ADDED = ("<extra_id_0>", "<extra_id_1>")
ALPACA = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}"
    "{% else %}{{ '### Response:\n' + m.content + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}" + tokenizers.CHATML


def metaspace(prepend: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a Llama-like BPE tokenizer.

    Args:
        prepend: ``normalizer`` (Llama 2's first form), or Metaspace's scheme.
        template: Its chat template.
    """
    inner: Any = Tokenizer(models.BPE(unk_token="<unk>"))
    # SentencePiece learns no piece with a space within: words are parted for the training only.
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=[*map(chr, range(33, 127)), "▁", "\n"],
    )  # fmt: skip
    inner.train_from_iterator(tokenizers.SENTENCES, trainer)
    if prepend == "normalizer":
        inner.pre_tokenizer = None
        inner.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    if template == PHI3:
        inner.add_special_tokens(
            [AddedToken(t, special=True, rstrip=True, normalized=False)
             for t in ("<|user|>", "<|assistant|>", "<|end|>")]
        )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    return tokenizer


def chatml(template: str, *added: str) -> PreTrainedTokenizerFast:
    """Return the ChatML tokenizer with another template, and with added tokens not special."""
    tokenizer = tokenizers.chatml()
    tokenizer.chat_template = template
    tokenizer.add_tokens([AddedToken(token, special=False) for token in added])
    return tokenizer
