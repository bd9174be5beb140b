"""Learner: a module, its DeepSpeed engine, and the few verbs that loops need.

Losses arrive as sums over a global denominator, so gradients of ranks and micro-batches must be added, not averaged:
DeepSpeed divides by the world size, and the learner multiplies by it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlhf.config import DeepSpeedConfig, OptimizerConfig
from rlhf.errors import CheckpointError, ConfigError, NonFiniteError
from rlhf.models.keys import is_projector

Micro = TypeVar("Micro")
Objective = Callable[[Any, Micro], tuple[Tensor, dict[str, Tensor]]]


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of the step with index `step` (0-based): linear warm-up, then constant or half a cosine to 0."""
    warmup = config.warmup_steps + math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    progress = (step - warmup) / max(1, total_steps - warmup)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def join_process_group(backend: str) -> None:
    """Join the group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))
    import deepspeed

    # a C++ build of half a minute for an operation that only tensor-parallel inference uses
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def deepspeed_dict(config: DeepSpeedConfig, optimizer: OptimizerConfig | None, dtype: str) -> dict[str, Any]:
    """DeepSpeed's own configuration. Accumulation is 1 because the learner marks the borders itself."""
    zero: dict[str, Any] = {"stage": config.zero_stage, "stage3_param_persistence_threshold": config.whole_below}
    if config.offload:
        if optimizer:
            zero["offload_optimizer"] = {"device": "cpu"}
        if config.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.max_grad_norm if optimizer else 0.0,
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def partition_while_loading(config: dict[str, Any]) -> object | None:
    """Keep the result alive while models load: with ZeRO-3 each rank then holds only its share of the weights."""
    if config["zero_optimization"]["stage"] != 3:
        return None
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(config)


def partitioned(module: nn.Module, config: dict[str, Any]) -> Any:
    """A module that never learns, shared out over the ranks, which call the result together and equally often."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=module.eval().requires_grad_(False), config=config)
    engine.eval()
    return engine


@contextmanager
def whole_for_writing(parameter: nn.Parameter) -> Iterator[nn.Parameter]:
    """The parameter, gathered if ZeRO-3 has partitioned it; what rank 0 writes is what all ranks keep."""
    if not hasattr(parameter, "ds_id"):
        yield parameter
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield parameter


class Learner:
    """Trains one module on this rank's share of every batch. All ranks call every method together."""

    def __init__(
        self, module: nn.Module, optimizer: OptimizerConfig, config: DeepSpeedConfig, dtype: str, total_steps: int
    ) -> None:
        import deepspeed

        self._optimizer_config, self._config, self._total_steps = optimizer, config, total_steps
        self.steps = 0
        groups = parameter_groups(module, optimizer)
        self._peaks = [float(group["lr"]) for group in groups]  # the optimizer's own are the current rates
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=torch.optim.AdamW(
                groups,
                lr=optimizer.lr,
                betas=optimizer.betas,
                eps=optimizer.eps,
            ),
            config=deepspeed_dict(config, optimizer, dtype),
        )
        self.module: Any = module  # the caller knows what it wrapped

    @property
    def rank(self) -> int:
        """Rank in the process group."""
        return dist.get_rank()

    def infer(self, micro_batches: Sequence[Micro], forward: Callable[[Any, Micro], Tensor]) -> list[Tensor]:
        """Run `forward(engine, micro)` without gradient; results on the CPU."""
        self.engine.eval()
        with torch.no_grad():
            return [forward(self.engine, micro).cpu() for micro in micro_batches]

    def step(self, micro_batches: Sequence[Micro], objective: Objective[Micro]) -> dict[str, float]:
        """Exactly one optimizer step over this rank's micro-batches.

        Returns the objective's statistics summed over them (this rank's part of the global means) plus grad_norm, lr
        and memory_gib (`peak_gib`). Raises NonFiniteError on every rank if a loss or a gradient is not finite on any;
        the weights are then unchanged, and it counts as no step.
        """
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.engine.train()
        totals: dict[str, Tensor] = {}
        world = dist.get_world_size()
        for index, micro in enumerate(micro_batches):
            self.engine.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            loss, stats = objective(self.engine, micro)
            self._refuse_non_finite(loss)
            self.engine.backward(loss * world)
            for name, value in {"loss": loss, **stats}.items():
                totals[name] = totals.get(name, torch.zeros(())) + value.detach().float().cpu()
        lr = learning_rate(self.steps, self._total_steps, self._optimizer_config)
        for group, peak in zip(self.engine.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = lr * (peak / self._optimizer_config.lr)
        norm = self._step()
        self.steps += 1
        result = {name: float(value) for name, value in totals.items()}
        return {**result, "grad_norm": norm, "lr": lr, "memory_gib": peak_gib()}

    def gathered(self, named: Sequence[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
        """Whole tensors, bucket by bucket of about `bucket_elements`; valid until the next bucket is asked for."""
        from deepspeed.runtime.zero import GatheredParameters

        for bucket in _buckets(named, self._config.bucket_elements):
            partitioned = [tensor for _, tensor in bucket if hasattr(tensor, "ds_id")]
            with GatheredParameters(partitioned, enabled=bool(partitioned)):
                yield [(name, tensor.detach()) for name, tensor in bucket]

    def save(self, folder: Path) -> None:
        """Trained weights, optimizer, step count and this rank's random state, sharded as trained."""
        folder.mkdir(parents=True, exist_ok=True)
        self.engine.save_checkpoint(
            str(folder),
            tag="state",
            client_state={"steps": self.steps},
            save_latest=False,
            exclude_frozen_parameters=True,  # they are where the model was loaded from
        )
        torch.save(torch.get_rng_state(), folder / f"rng_{self.rank}.pt")
        if torch.cuda.is_available():  # dropout draws there
            torch.save(torch.cuda.get_rng_state(), folder / f"cuda_rng_{self.rank}.pt")
        dist.barrier()

    def load(self, folder: Path) -> None:
        """The inverse of `save`, for the same number of ranks."""
        path, client = self.engine.load_checkpoint(str(folder), tag="state", load_module_strict=False)
        if path is None:
            raise CheckpointError(f"{folder}: DeepSpeed found no state for rank {self.rank}")
        self.steps = int(client["steps"])
        torch.set_rng_state(torch.load(folder / f"rng_{self.rank}.pt", weights_only=True))
        on_gpu = folder / f"cuda_rng_{self.rank}.pt"
        if torch.cuda.is_available() and on_gpu.exists():
            torch.cuda.set_rng_state(torch.load(on_gpu, weights_only=True))

    def _step(self) -> float:
        """Step the optimizer; the norm of the gradients before clipping, which all ranks share."""
        if isinstance(self.engine.optimizer, torch.optim.Optimizer):
            # a bare torch optimizer (float32 without ZeRO): DeepSpeed does not say what the norm was, nor look at it
            norm = float(
                torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
            )
            if math.isfinite(norm):
                self.engine.step()
            else:
                self.engine.zero_grad()
        else:
            self.engine.step()  # which leaves the weights alone where the norm is not finite
            norm = float(self.engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise NonFiniteError(f"a gradient of step {self.steps} is not finite on some rank, its loss was")
        return norm

    def _refuse_non_finite(self, loss: Tensor) -> None:
        finite = torch.isfinite(loss.detach()).to(torch.int32).reshape(1)
        dist.all_reduce(finite, op=dist.ReduceOp.MIN)  # all ranks stop together instead of waiting for one
        if not int(finite):
            raise NonFiniteError(f"the loss of step {self.steps} is not finite on some rank (here: {float(loss)})")


def peak_gib() -> float:
    """GiB at the worst moment: of tensors on this process's GPU in the step, or of all its resident memory so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # not ru_maxrss, which a process inherits from the one that started it
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """What learns, by learning rate and weight decay: matrices, then vectors; with `projector_lr` the projector apart.

    Raises ConfigError if `projector_lr` is set and the projector does not learn.
    """
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    apart = config.projector_lr is not None
    projector = [parameter for name, parameter in trainable if apart and is_projector(name)]
    others = [parameter for name, parameter in trainable if not (apart and is_projector(name))]
    if apart and not projector:
        raise ConfigError(["optimizer.projector_lr is set, but the projector is frozen: set trainable.projector=true"])
    groups = []
    for parameters, lr in ((others, config.lr), (projector, config.projector_lr)):
        vectors = {id(one) for one in parameters if len(getattr(one, "ds_shape", one.shape)) <= 1}
        matrices = [one for one in parameters if id(one) not in vectors]
        groups.append({"params": matrices, "weight_decay": config.weight_decay, "lr": lr})
        groups.append({"params": [one for one in parameters if id(one) in vectors], "weight_decay": 0.0, "lr": lr})
    return [group for group in groups if group["params"]]


def _buckets(named: Sequence[tuple[str, Tensor]], limit: int) -> Iterator[list[tuple[str, Tensor]]]:
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in named:
        elements = int(getattr(tensor, "ds_numel", tensor.numel()))
        if bucket and size + elements > limit:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += elements
    if bucket:
        yield bucket
