"""The judge against a real server: `transformers serve` with a tiny model of random weights."""

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from concordant.rewards import Judge, PairJudge

START = 90.0
"""Longest wait for the server, which imports torch and transformers, on a busy machine."""


def make_model(folder) -> None:
    """Write a model of a few thousand random weights, and a tokeniser of single characters with a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {character: index for index, character in enumerate(["<eos>", *alphabet])}
    core = Tokenizer(models.BPE(vocab=words, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None}
    config = Qwen2Config(
        vocab_size=len(words), num_key_value_heads=2, max_position_embeddings=8192, **sizes, **ids
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge-model")
    make_model(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
    ]
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "cache")}
    log = (folder / "log").open("w")
    options = ["--port", str(port), "--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen([*command, *options], env={**os.environ, **offline}, stdout=log, stderr=log)
    try:
        end = time.monotonic() + START
        while True:
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                    f"http://127.0.0.1:{port}/health", timeout=1
                )
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()[-2000:]
                time.sleep(0.1)
        yield str(folder), f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(10)
        log.close()


@pytest.mark.slow
def test_a_random_model_is_never_more_than_an_abstention(served):
    model, url = served
    options = {"model": model, "base_url": url, "max_tokens": 8, "seconds": 60.0}

    async def ask():
        point, pair = Judge(**options), PairJudge(**options)
        return [
            await point("2+2=4", prompt="2+2?"),
            await point("2+2=4", prompt="2+2?"),
            await pair("4", "5", "2+2?"),
        ]

    first, second, third = asyncio.run(ask())
    assert first == second, "temperature 0 and a seed"
    for verdict in (first, third):
        assert verdict.score is None, "noise holds no code"
        assert verdict.detail["reason"] in (
            "the reply is incomplete: finish_reason 'length'",
            "the reply is not the JSON object asked for",
            "the reply is empty",
        )


@pytest.mark.slow
def test_a_real_server_refuses_an_unknown_model(served):
    from concordant.core.errors import RewardError
    from concordant.scoring.reward import TransientError

    with pytest.raises((RewardError, TransientError), match="HTTP"):
        asyncio.run(Judge(model="no/such-model", base_url=served[1])("text"))
