"""New weights for a server: written as a folder that both can read, then named to it."""

import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.load import save_folder
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.rollouts.completions import PassingError, SamplerError, Server

Order = Callable[[str], tuple[str, Mapping[str, Any]]]
"""Folder -> path and body of the request that makes the server load it."""


def sglang_order(folder: str) -> tuple[str, Mapping[str, Any]]:
    """SGLang reads a folder on request."""
    return "/update_weights_from_disk", {"model_path": folder}


def vllm_order(folder: str) -> tuple[str, Mapping[str, Any]]:
    """vLLM does so only when it was started with VLLM_SERVER_DEV_MODE=1, which opens more than this to its callers."""
    return "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}}


def by_folder(
    server: Server, hub: Hub, folder: str | pathlib.Path, order: Order = sglang_order, seconds: float = 600.0
) -> Callable[[Params], None]:
    """A `hand_over` for `OpenAISampler`: each version in a folder of its own below `folder`, the one before removed.

    A folder of its own, since a server may keep files of an earlier one open or cached. The function raises
    SamplerError where the server does not take the weights: sampling on with old ones would go unseen.
    """
    place, done = pathlib.Path(folder), []

    def hand_over(params: Params) -> None:
        target = place / f"version-{len(done)}"
        save_folder(target, hub, params)
        path, body = order(str(target.absolute()))
        try:
            reply = server.post(path, body, seconds)
        except PassingError as error:
            raise SamplerError(f"the server has not taken new weights: {error}") from error
        if reply.get("success") is False:
            raise SamplerError(f"the server has not taken new weights: {str(reply)[:500]}")
        if done:
            shutil.rmtree(done[-1])
        done.append(target)

    return hand_over
