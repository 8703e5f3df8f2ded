"""Fetch timm's own weights through its hub loader, or say in a line what must be copied where."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ich_ray.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["fetched"]


def fetched(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a network in timm's names; `facts` are its `pretrained_cfg`.

    Raises:
        ConfigError: timm has none, or the file is not there and cannot be fetched.
    """
    import timm

    if not timm.is_model_pretrained(name):
        raise ConfigError(
            f"weights: imagenet must be a source of the network, got timm/{name}, of which timm has no weights; use "
            "none, or a safetensors file"
        )
    try:
        _reach(facts)
        state: dict[str, Any] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # noqa: BLE001  (hub, network and file formats have errors of their own)
        expected = _cached(facts)
        raise ConfigError(
            f"weights: imagenet of timm/{name} needs {expected}, got {type(error).__name__} while fetching it; copy "
            f"{expected.name} there from a machine with a network, set HF_HOME, or use weights: none"
        ) from None
    return state


def _reach(facts: Mapping[str, Any]) -> None:
    """Ask the hub once for a file that is not there: its loader tries for a minute where there is no network."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError

    repository, file = _repository(facts), facts.get("hf_hub_filename") or "model.safetensors"
    if not repository or hub.try_to_load_from_cache(repository, file) is not None:
        return
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, file))
    except EntryNotFoundError:  # it has the weights in another format, which the loader knows
        return


def _repository(facts: Mapping[str, Any]) -> str:
    return str(facts.get("hf_hub_id") or "").partition("@")[0]


def _cached(facts: Mapping[str, Any]) -> Path:
    """Where the loader looks for the files of a network."""
    if repository := _repository(facts):
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / str(facts.get("url")).rsplit("/", 1)[-1]
