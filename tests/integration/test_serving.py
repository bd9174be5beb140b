"""Real servers on Ray Serve with a random tiny model: concurrency, refusals, the answers of engines alone."""

from __future__ import annotations

import base64
import hashlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rlhf.batch import Prompt
from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.guard.guards import EngineGuard, GuardDecoding
from rlhf.guard.policy import build_policy
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.taxonomy import taxonomy
from rlhf.rollout import build_engine
from rlhf.rollout.base import RolloutConfig, Sampling
from rlhf.rollout.vllm_engine import cpu_environment

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PORT = 8197  # Ray Serve has one address per cluster, so both servers use it
VARIANTS: dict[str, dict[str, str]] = {"default": {}, "range": {"O6": "exempt"}}
TOKEN = {"Authorization": "Bearer an-integration-test"}


def command(model: ModelConfig, config: str, *overrides: str) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "jobs" / "serve.py"),
        "--config",
        str(ROOT / "jobs" / "configs" / "tiny" / f"{config}.yaml"),
        f"model.path={model.path}",
        f"http.port={PORT}",
        "http.token_variable=SERVER_TOKEN",
        *overrides,
    ]


@contextmanager
def served(environment: dict[str, str], model: ModelConfig, config: str, *overrides: str) -> Iterator[str]:
    """A running `jobs/serve.py` on one replica; yields its address, ends it as an operator does, and checks that."""
    process = subprocess.Popen(
        command(model, config, *overrides),
        env={**environment, "SERVER_TOKEN": "an-integration-test"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    listener = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]
    listener.start()
    deadline = time.monotonic() + 240
    try:
        while not (found := [line for line in lines if " answers at http" in line]):
            assert process.poll() is None, "".join(lines)[-4000:]
            assert time.monotonic() < deadline, "".join(lines)[-4000:]
            time.sleep(0.1)
        yield found[0].split()[-1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, "".join(lines)[-4000:]
    finally:
        if process.poll() is None:
            process.kill()
        listener.join(timeout=10)


def chat(address: str, body: dict[str, Any], headers: dict[str, str] = TOKEN) -> httpx.Response:
    return httpx.post(f"{address}/v1/chat/completions", json=body, headers=headers, timeout=120)


def asked(prompt: Prompt, **others: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": prompt.question}]
    if prompt.image:
        uri = f"data:image/png;base64,{base64.b64encode(Path(prompt.image).read_bytes()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": uri}})
    return {"model": "tiny", "messages": [{"role": "user", "content": parts}], **others}


def test_vlguard17_a_served_model_gives_the_engines_answers_to_many_at_once_and_refuses_what_is_broken(
    ray_head: dict[str, str], tiny: ModelConfig, pictures: list[str]
) -> None:
    prompts = [Prompt(f"{n}", f"What is in picture {n}?", pictures[n % 4] if n % 5 else None) for n in range(12)]
    config = RolloutConfig(engine="transformers", dtype="float32", max_length=256)
    engine = build_engine(tiny, config, Processor.load(tiny))
    direct = engine.generate(prompts, Sampling(max_new_tokens=24, temperature=0))
    settings = ("rollout.engine=transformers", "model.max_length=256", "http.route=/policy", "http.max_body_mb=1")
    with ThreadPoolExecutor(12) as pool, served(ray_head, tiny, "serve", *settings) as address:
        assert address == f"http://127.0.0.1:{PORT}/policy"
        answers = list(pool.map(lambda prompt: chat(address, asked(prompt)), prompts))
        assert [answer.status_code for answer in answers] == [200] * 12
        said = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
        assert said == [one.text for one in direct]
        assert {answer.json()["safevl"]["refused"] for answer in answers} == {False}

        fine, bad = asked(prompts[0]), asked(prompts[1])
        bad["messages"][0]["content"][1]["image_url"]["url"] = "data:image/png;base64,aGVsbG8="
        mixed = list(pool.map(lambda body: chat(address, body), [fine, bad, {**fine, "model": "x"}, fine]))
        assert [answer.status_code for answer in mixed] == [200, 400, 404, 200]
        assert mixed[1].json()["error"]["code"] == "invalid_image"
        assert mixed[3].json()["choices"][0]["message"]["content"] == direct[0].text
        assert chat(address, fine, {}).status_code == 401
        huge = httpx.post(f"{address}/v1/chat/completions", content=b" " * 2**21, headers=TOKEN, timeout=60)
        assert huge.status_code == 413
        assert httpx.get(f"{address}/health", timeout=30).json()["model"] == "tiny"
        assert httpx.get(f"{address}/v1/guard", headers=TOKEN, timeout=30).status_code == 404
        for other in _own_addresses():
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"http://{other}:{PORT}/policy/health", timeout=5)
        long = asked(prompts[0], max_tokens=120)
        late = [pool.submit(chat, address, long) for _ in range(6)]
        while httpx.get(f"{address}/health", timeout=30).json()["pending"] < 6:
            assert not any(one.done() for one in late)
    # the server was told to stop while it worked
    assert [one.result().status_code for one in late] == [200] * 6
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{PORT}/policy/health", timeout=5)


def test_servers_of_a_cluster_share_its_address_and_end_apart(ray_head: dict[str, str], tiny: ModelConfig) -> None:
    slow = ("rollout.engine=transformers", "model.max_length=256")
    environment = {**ray_head, "SERVER_TOKEN": "an-integration-test"}

    def refused(*overrides: str) -> str:
        done = subprocess.run(
            command(tiny, "serve", *slow, *overrides), env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stderr

    with served(ray_head, tiny, "serve", *slow, "http.max_pending=4") as address:
        with served(ray_head, tiny, "serve", *slow, "name=other", "http.route=/other") as other:
            assert httpx.get(f"{other}/health", timeout=30).json()["model"] == "other"
        assert "Ray Serve has one address per cluster" in refused(
            "name=lost", "http.route=/lost", f"http.port={PORT + 1}"
        )
        assert "flash_attn" in refused("name=broken", "http.route=/broken", "model.attention=flash_attention_2")
        assert httpx.get(f"{address}/health", timeout=30).json()["model"] == "tiny"
        for gone in ("other", "lost", "broken"):
            assert httpx.get(f"http://127.0.0.1:{PORT}/{gone}/health", timeout=30).status_code == 404
        body = asked(Prompt("", "Hello?"), max_tokens=60)
        with ThreadPoolExecutor(24) as pool:
            answers = list(pool.map(lambda _: chat(address, body), range(24)))
        assert {answer.status_code for answer in answers} == {200, 503}
        assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers if answer.is_success}) == 1


def test_guard13_a_served_guard_gives_the_verdicts_of_vllm_without_a_server(
    ray_head: dict[str, str], tiny: ModelConfig, pictures: list[str]
) -> None:
    """An untrained guard, hot, held to its schema: seeds belong to prompts, so its verdicts repeat elsewhere."""
    keys = ("rating", "category")
    policies = {name: build_policy(taxonomy("tiny"), overrides, keys) for name, overrides in VARIANTS.items()}
    form = "{taxonomy: tiny, keys: [rating, category], overrides: {O6: exempt}}"
    settings = (
        f"service.policies={{default: {form.replace(', overrides: {O6: exempt}', '')}, range: {form}}}",
        "service.sampling={temperature: 1.0, max_new_tokens: 160}",
    )
    names = [(path, name) for path in pictures for name in policies]
    with served(ray_head, tiny, "serve_guard", *settings) as address, ThreadPoolExecutor(8) as pool:

        def judged(place: int) -> httpx.Response:
            path, name = names[place]
            content = base64.b64encode(Path(path).read_bytes()).decode()
            body = {"image": content, "policy_id": name}
            return httpx.post(f"{address}/v1/guard", json=body, headers=TOKEN, timeout=120)

        answers = list(pool.map(judged, range(len(names))))
        assert [answer.status_code for answer in answers] == [200] * len(names)
        wrong = {"image": "https://example.org/a.png"}
        assert httpx.post(f"{address}/v1/guard", json=wrong, headers=TOKEN, timeout=60).status_code == 400
    verdicts = [answer.json() for answer in answers]
    assert {one["valid"] for one in verdicts if not one["truncated"]} == {"json"}
    assert [one["policy_sha256"] for one in verdicts] == [policies[name].sha256 for _, name in names]
    requests = [
        GuardRequest(f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}", path, policies[name])
        for path, name in names
    ]
    model = tiny.model_copy(update={"max_length": 512})
    config = RolloutConfig(engine="vllm", dtype="float32", max_length=512, max_sequences=32, kv_cache_mb=64)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cpu_environment().items():
            patch.setenv(name, value)
        engine = build_engine(model, config, Processor.load(model))
        direct = EngineGuard(engine, GuardDecoding(temperature=1.0, max_new_tokens=160)).judge(requests)
    assert [one["raw"] for one in verdicts] == [one.raw for one in direct]
    assert [one["rating"] for one in verdicts] == [one.rating for one in direct]


def _own_addresses() -> list[str]:
    """Addresses of this machine that are not loopback: where a server must not listen by default."""
    every = [one for found in psutil.net_if_addrs().values() for one in found if one.family == socket.AF_INET]
    return [one.address for one in every if not one.address.startswith("127.")]
