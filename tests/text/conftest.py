"""Small tokenizers of the usual kinds, chat templates of the usual styles, and corpora on disk."""

import json
import os

import pytest

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jaxdiff.config import SourceConfig

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CHATML_WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe a helpful user.<|im_end|>\n"
    "{% endif %}" + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday: {{ strftime_now('%d %b %Y') }}\n\n"
    "{{ system }}<|eot_id|>{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
)
SYSTEM_IN_LAST_USER = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "[INST]{% if loop.index0 >= messages | length - 2 and system is defined %}{{ system }}\n\n"
    "{% endif %}{{ m.content }}[/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
DROPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "chatml_with_default": CHATML_WITH_DEFAULT,
    "llama3": LLAMA3,
    "gemma2": GEMMA2,
    "system_in_last_user": SYSTEM_IN_LAST_USER,
}
SPECIAL = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
]


def _wrap(tokenizer, bos="<s>", template=None):
    tokenizer.add_special_tokens([t for t in SPECIAL if bos or t != "<s>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos)
    wrapped.chat_template = template
    return wrapped


def byte_level(vocab_size=256, bos="<s>", template=None):
    """256 is one token a byte; more adds merges learnt from a little text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, said the assistant"] * 3, trainer)
    return _wrap(tokenizer, bos, template)


def word_level(template=None):
    words = ["<unk>", "the", "cat", "sat", "on", "mat", "user", "assistant", "system"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _wrap(tokenizer, template=template)


def sentencepiece(template=None):
    letters = "abcdefghijklmnopqrstuvwxyz."
    pieces = ["<unk>", "\u2581cat", "sat", "\u2581", *letters]
    pieces += [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer(
        models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=0, byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _wrap(tokenizer, template=template)


@pytest.fixture(scope="session")
def make():
    """Makers of tokenizers, by kind."""
    return {"byte_level": byte_level, "word_level": word_level, "sentencepiece": sentencepiece}


@pytest.fixture(scope="session")
def templates():
    return TEMPLATES | {"drops_reasoning": DROPS_REASONING}


@pytest.fixture(scope="session")
def words():
    """A word-level tokenizer with the ChatML template."""
    return word_level(CHATML)


@pytest.fixture(scope="session")
def bytes_():
    """One token a byte, BOS, no template."""
    return byte_level()


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns it as a source."""

    def write(name, content, **settings):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content)
        elif path.suffix == ".parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(content), path, row_group_size=4)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return SourceConfig(path=str(path), **settings)

    return write
