"""Serving on Ray Serve: replicas that each hold an engine, behind one HTTP address per cluster."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

import ray
from ray import serve

from cluster.placement import check, plan
from rlhf.errors import ResourceError, WorkerLostError
from rlhf.serving.config import HttpConfig, ServingConfig

if TYPE_CHECKING:
    from starlette.applications import Starlette

_PATIENCE_SECONDS = 20
_QUIET = {"log_level": "WARNING", "enable_access_log": False}


@serve.ingress()
class Replica:
    """One engine with the application that asks it. Ray Serve calls the methods."""

    def __init__(self, config: ServingConfig, token_sha256: str | None) -> None:
        import torch

        from rlhf.rollout import build_engine
        from rlhf.serving import build_service
        from rlhf.serving.app import Endpoint
        from rlhf.serving.batcher import Batcher
        from rlhf.serving.uploads import UploadProcessor

        if not torch.cuda.is_available():
            torch.set_num_threads(config.replicas.threads)
        processor = UploadProcessor.load(config.model)
        service = build_service(config, processor)
        seed = config.service.sampling.seed
        self._batcher = Batcher(
            lambda: build_engine(config.model, config.rollout, processor, seed),
            config.batch_rows,
            config.gather_seconds,
        )
        self._endpoint = Endpoint(config, service, self._batcher, token_sha256)

    def __serve_build_asgi_app__(self) -> Starlette:
        return self._endpoint.application()

    async def check_health(self) -> None:
        """Raises WorkerLostError for an engine that keeps failing; Ray Serve then replaces the replica."""
        await self._batcher.check()


def start(config: ServingConfig, token_sha256: str | None) -> str:
    """Start the server, or replace the one of this name; returns its address when it answers. Ray must be connected.

    Raises ResourceError for a cluster that is too small or an address that is taken, WorkerLostError for replicas that
    do not start.
    """
    check(plan({"replicas": config.replicas}), [node["Resources"] for node in ray.nodes() if node["Alive"]])
    http = config.http
    if not serve.status().proxies and _is_taken(http):
        raise ResourceError(f"something else listens at {http.host}:{http.port}; choose another http.port")
    serve.start(
        proxy_location="HeadOnly", http_options={"host": http.host, "port": http.port}, logging_config=dict(_QUIET)
    )
    try:
        serve.run(
            _deployment(config).bind(config, token_sha256),
            name=config.name,
            route_prefix=http.route,
            logging_config=dict(_QUIET),
        )
    except RuntimeError as error:
        raise WorkerLostError(f"the server {config.name}", str(error).strip()) from error
    address = f"http://{_reachable(http)}:{http.port}{http.route.rstrip('/')}"
    _wait_for(address, config.name)
    return address


def stop(config: ServingConfig) -> None:
    """End the server after what is under way; Ray Serve itself too, if it has no other one."""
    if config.name in serve.status().applications:
        serve.delete(config.name)
    if not serve.status().applications:
        serve.shutdown()


def _deployment(config: ServingConfig) -> Any:
    replicas, http = config.replicas, config.http
    driver = dict(ray.get_runtime_context().runtime_env)
    variables = dict(driver.get("env_vars") or {})
    if not replicas.gpus:
        from rlhf.rollout.vllm_engine import cpu_environment

        variables |= cpu_environment()
    return serve.deployment(
        Replica,
        name="Replica",
        num_replicas=replicas.ranks,
        ray_actor_options={
            "num_cpus": replicas.cpus,
            "num_gpus": replicas.gpus,
            "runtime_env": {**driver, "env_vars": variables},
        },
        # replicas refuse what is too much in OpenAI's shape; Ray Serve's own limits are for what comes faster still
        max_ongoing_requests=2 * http.max_pending,
        max_queued_requests=http.max_pending,
        graceful_shutdown_timeout_s=http.drain_seconds,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=1,  # an engine that does not start fails alike at every try
    )


def _is_taken(http: HttpConfig) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((_reachable(http), http.port), timeout=1):
        return True
    return False


def _reachable(http: HttpConfig) -> str:
    return "127.0.0.1" if http.host == "0.0.0.0" else http.host


def _wait_for(address: str, name: str) -> None:
    """Until the server of this name answers there. An older Ray Serve of the cluster keeps its own address."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(URLError, ValueError, OSError), urlopen(f"{address}/health", timeout=5) as reply:
            if json.load(reply).get("model") == name:
                return
        time.sleep(0.2)
    raise ResourceError(
        f"the server {name} does not answer at {address}: Ray Serve has one address per cluster, which its first "
        "server chose; use that one with another http.route, or end the other servers"
    )
