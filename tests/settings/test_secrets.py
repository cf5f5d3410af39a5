"""Secrets of a command are hidden, however it is quoted, and nothing else is."""

from __future__ import annotations

import pytest

from spin_composer.settings.secrets import text_without_secrets, without_secrets


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("model.use_auth_token=hf_abc", "model.use_auth_token=***"),
        ("loggers.wandb.api_key=abc", "loggers.wandb.api_key=***"),
        ("--api-key=abc", "--api-key=***"),
        ("http://me:pass@host:80/v1", "http://me:***@host:80/v1"),
        ("Authorization: Bearer sk-abc", "Authorization: ***"),
        ("-HProxy-Authorization: Basic c2s=", "-HProxy-Authorization: ***"),
        ("Cookie: a=b; c=d", "Cookie: ***"),
        ("X-Api-Key: abc", "X-Api-Key: ***"),
        ("--token-header=Bearer sk-abc", "--token-header=Bearer ***"),
        ('{"api_key": "a b", "port": 80}', '{"api_key": ***, "port": 80}'),
        ("server.reload_command=load --api-key 'a b' {model}",
         "server.reload_command=load --api-key *** {model}"),
        ("curl -u me:pass http://host", "curl -u me:*** http://host"),
        ("https://ghp_abc@github.com/x", "https://***@github.com/x"),
        ("http://me:p@ss@host", "http://me:***@host"),
        ("http://host/x?X-Amz-Signature=abc", "http://host/x?X-Amz-Signature=***"),
        ("AWS_ACCESS_KEY_ID=abc", "AWS_ACCESS_KEY_ID=***"),
        *((f"{name}=abc", f"{name}=***") for name in (
            "apikey", "PGPASSWORD", "--clientSecret", "GITHUBTOKEN", "openaiapikey",
            "text_key.secret", "mask_key.api_key", "response_token",
            "text_key-password", "a.auth", "sig",
        )),
        ("AccountName=x;AccountKey=abc==", "AccountName=x;AccountKey=***"),
        ("X-Auth: abc", "X-Auth: ***"),
        (f"{'a.' * 100}api_key=abc", f"{'a.' * 100}api_key=***"),
        *((harmless, harmless) for harmless in (
            "train_loader.dataset.stop_token=<|im_end|>", "tokenizer.kwargs.pad_token=<pad>",
            "--eos-token </s>", "text_key=prompt", "monkey=3", "oci://bucket@space/x",
            "num_tokens=5", "design=3", "author=me", "http://host/a@b", "http://host?mail=a@b",
            "ssh://git@github.com/x", "s3://bucket/x@y",
        )),
        ("tokenizer.name=gpt2", "tokenizer.name=gpt2"),
        ("generation.max_new_tokens=512", "generation.max_new_tokens=512"),
        ("http://host:8000", "http://host:8000"),
        ("python -u serve.py", "python -u serve.py"),
    ],
)  # fmt: skip
def test_secrets_of_a_command_are_left_out(word: str, shown: str) -> None:
    assert without_secrets(["train", word]) == ["train", shown]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["serve", "--api-key", "abc", "--port", "80"],
         ["serve", "--api-key", "***", "--port", "80"]),
        (["serve", "--eos-token", "</s>"], ["serve", "--eos-token", "</s>"]),
        (["curl", "--user", "me:pass", "-u", "me"], ["curl", "--user", "me:***", "-u", "me"]),
    ],
)  # fmt: skip
def test_the_word_after_a_secrets_flag_is_left_out(given: list[str], shown: list[str]) -> None:
    assert without_secrets(given) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('curl -sf -H "Authorization: Bearer sk-abc" http://h/{model}',
         "curl -sf -H 'Authorization: ***' 'http://h/{model}'"),
        ("load --token 'a b' {model}", "load --token '***' '{model}'"),
        ('load  "{model}" --port {port}', 'load  "{model}" --port {port}'),
        ("http://me:pass@host", "http://me:***@host"),
        ("the host's api_key=abc", "the host's api_key=***"),
    ],
)  # fmt: skip
def test_a_commands_text_is_hidden_word_by_word(text: str, shown: str) -> None:
    assert text_without_secrets(text) == shown


@pytest.mark.parametrize("word", ["a" * 200_000, "token" * 40_000, "a.token-" * 20_000])
def test_a_long_word_is_read_once(word: str) -> None:
    assert without_secrets([word]) == [word]
