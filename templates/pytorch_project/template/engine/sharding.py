"""Models that are too large for one GPU: each process keeps a part of every weight (`shard: true`, PyTorch's FSDP2).

A checkpoint holds whole weights all the same, so it can be continued by any number of processes, sharded or not.
"""

from typing import Any

import torch
from torch import Tensor, nn, optim

from engine.errors import UserError


def shard_model(model: nn.Module) -> None:
    """Divide every weight among the processes, block by block, so that one block at a time is whole.

    Raises:
        UserError: the model has BatchNorm, of whose running statistics each process would have its own.
    """
    from torch.distributed.fsdp import fully_shard  # in functions, because the import takes time that others need not

    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UserError("shard is true, but the model has BatchNorm, which is not for sharding; use shard=false")
    model.to(memory_format=torch.contiguous_format)  # the only one that can be divided
    for container in model.children():
        if isinstance(container, nn.ModuleList | nn.Sequential):
            for block in container:
                fully_shard(block)
    fully_shard(model)


def whole(value: Any) -> Any:
    """A state dict with every weight put together from its parts; all processes have to ask for it."""
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return [whole(item) for item in value] if isinstance(value, list) else value


def parts_of(saved: dict[str, Any], model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Any]:
    """A checkpoint of which the weights and moments are divided as those of `model` and `optimizer` are."""
    shards = model.state_dict()
    weights = {name: _part(tensor, shards.get(name)) for name, tensor in saved["model"].items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {key: _part(value, parameters[number]) for key, value in state.items()}
        for number, state in saved["optimizer"]["state"].items()
    }
    return saved | {"model": weights, "optimizer": saved["optimizer"] | {"state": moments}}


def _part(value: Any, like: Any) -> Any:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    # Every process has the whole tensor, so that none has to send it.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
