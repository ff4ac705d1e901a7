"""Loading tokenizers and showing tokens."""

import json
import os
import subprocess
import sys

import pytest

from jaxdiff.errors import JaxdiffError
from jaxdiff.text import describe, load_tokenizer


def test_saved_tokenizer_loads_as_it_was(tmp_path, words):
    words.save_pretrained(tmp_path)
    # A Llama next to it must not make transformers build a Llama tokenizer out of these words.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    loaded = load_tokenizer(tmp_path)
    chat = [{"role": "user", "content": "the cat"}]
    assert loaded.encode("the cat sat") == words.encode("the cat sat")
    assert loaded.apply_chat_template(chat, tokenize=False) == words.apply_chat_template(
        chat, tokenize=False
    )
    assert loaded.bos_token == "<s>"


def test_truncation_in_the_file_is_switched_off(tmp_path, make):
    tokenizer = make["byte_level"]()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding()
    tokenizer.save_pretrained(tmp_path)
    encodings = load_tokenizer(tmp_path).backend_tokenizer.encode_batch(["a", "abcdef"])
    assert [len(encoding.ids) for encoding in encodings] == [1, 6]


def test_bad_tokenizers(tmp_path):
    with pytest.raises(JaxdiffError, match="no such directory"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(JaxdiffError, match="no tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(JaxdiffError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


def test_unreachable_hub_name():
    # The test session is offline (HF_HUB_OFFLINE).
    with pytest.raises(JaxdiffError, match="cannot be loaded"):
        load_tokenizer("nobody/nothing-of-that-name")


def test_loading_is_silent_and_importing_is_light(tmp_path, words):
    words.save_pretrained(tmp_path)
    code = (
        "import sys, jaxdiff.text as text\n"
        "from jaxdiff.text import load_tokenizer, describe, splits\n"
        "assert 'transformers' not in sys.modules\n"
        "load_tokenizer(sys.argv[1])\n"
    )
    light = "import sys, jaxdiff.text\nassert not {'grain', 'transformers'} & set(sys.modules)\n"
    # conftest.py silences transformers for this process: here jaxdiff has to do it.
    env = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_NO_ADVISORY_WARNINGS"}
    command = [sys.executable, "-c", light + code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_describe_byte_level(make):
    tokenizer = make["byte_level"](300)
    ids = tokenizer.encode("<s>the cat\u20ac\n on")
    shown = describe(tokenizer, ids)
    assert " cat" in shown and shown[0] == "<s>" and "\n" in shown
    assert [s for s in shown if s.startswith("<0x")] == ["<0xE2>", "<0x82>", "<0xAC>"]
    plain = tokenizer.encode("the assistant sat, on a mat")
    assert "".join(describe(tokenizer, plain)) == "the assistant sat, on a mat"


def test_describe_sentencepiece(make):
    tokenizer = make["sentencepiece"]()
    ids = tokenizer.encode(" cat sat.\n\u20ac")
    assert describe(tokenizer, ids) == [" cat", " ", "sat", ".", "\n", "<0xE2>", "<0x82>", "<0xAC>"]


def test_describe_word_level_and_strangers(words):
    ids = [*words.encode("the cat"), words.bos_token_id, 10_000, -1]
    assert describe(words, ids) == ["the", "cat", "<s>", "<id 10000>", "<id -1>"]
    assert describe(words, []) == []


def test_describe_keeps_added_tokens_as_they_are(make):
    tokenizer = make["byte_level"]()
    tokenizer.add_tokens(["\u0120odd"])
    added = tokenizer.convert_tokens_to_ids("\u0120odd")
    assert describe(tokenizer, [added]) == ["\u0120odd"]
