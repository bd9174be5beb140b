"""A model behind an HTTP address, on Ray Serve: `python jobs/serve.py --config jobs/configs/tiny/serve.yaml`.

Serves a policy to OpenAI's clients or a guard with its policies, until it is interrupted.
"""

from __future__ import annotations

import contextlib
import signal
import threading

from jobs.command_line import main
from rlhf.config import resolve
from rlhf.serving.config import ChatServiceConfig, ServingConfig, token_sha256


def run(config: ServingConfig) -> None:
    """Serve until SIGINT or SIGTERM; what is under way then is still answered."""
    from rlhf.serving import build_service
    from rlhf.serving.uploads import UploadProcessor

    token = token_sha256(config.http)
    # a missing model and a policy that does not fit are refused before anything starts
    build_service(config, UploadProcessor.load(config.model))

    import ray

    from actors.serving import start, stop
    from cluster.connect import connect

    own = connect(shared_cores=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with contextlib.ExitStack() as ending:
            ending.callback(stop, config)
            address = start(config, token)
            print(_welcome(config, address), flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
            print("stopping", flush=True)
    finally:
        if own:
            ray.shutdown()


def _welcome(config: ServingConfig, address: str) -> str:
    """Where the server is, how to ask it, and who may."""
    variable = config.http.token_variable
    key = f' -H "Authorization: Bearer ${variable}"' if variable else ""
    if isinstance(config.service, ChatServiceConfig):
        body = f'{{"model": "{config.name}", "messages": [{{"role": "user", "content": "What colour is a ball?"}}]}}'
        example = f"curl{key} {address}/v1/chat/completions -d '{body}'"
    else:
        body = """printf '{"image": "%s"}' "$(base64 -w0 picture.png)\""""
        example = f"{body} | curl{key} {address}/v1/guard -d @-"
    lines = [f"{config.name} ({resolve(config.model.path)}) answers at {address}", example]
    if not variable and config.http.host not in ("127.0.0.1", "localhost", "::1"):
        lines.append(f"anyone who reaches {config.http.host} may ask: set http.token_variable")
    return "\n".join([*lines, "Ctrl-C ends it"])


if __name__ == "__main__":
    main(ServingConfig, run, __doc__ or "")
