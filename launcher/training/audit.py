"""`bigbatch submit --audit`: ranks repeat parts of a step for each other, and name the node that computes wrongly.

The gradient of a rank's share of the batch follows from the step's number and the weights. Under DDP, ZeRO-1 and
ZeRO-2, every rank has all weights, so a rank on another node can repeat the share and must get the same gradient. The
repetition leaves the accumulated gradient, the optimizer and BatchNorm's statistics alone, so the run stays the same.

If two ranks disagree about a share, a third one computes it too, and the majority counts. With only two ranks, both
repeat it: one that does not get its own first result again is wrong.
"""

import os
import platform
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from accelerate.utils import gather_object
from torch import Tensor

from data.batches import MicroBatch
from data.input_digest import INPUT_KINDS
from launcher.engines.base import Engine
from launcher.engines.gradient_digest import GradientDigest
from launcher.runs.step_layers import rounding_of
from launcher.training.audit_suspects import ComputedShare, ShareResult, Suspects, disagreement, find_suspects
from launcher.training.fit_micro_batch import OutOfMemory, oom_on_any_rank
from launcher.world import World, print_on_main, this_process
from models.prepared import PreparedModel
from recipes.errors import UserError

NEEDS_ALL_WEIGHTS = (
    "--audit needs all weights on every rank, and ZeRO-3 shards them: leave --audit out, or add engine.zero=2"
)


class WrongResult(Exception):
    """Some ranks computed something else than the others. All ranks raise this together.

    Attributes:
        node: the node of this rank.
        is_here: whether this rank is one of them.
    """

    def __init__(self, message: str, node: str, is_here: bool):
        super().__init__(message)
        self.node, self.is_here = node, is_here


class ShareLosses(Protocol):
    """Returns the loss of each image of a micro-batch, given how to compute logits from images."""

    def __call__(self, batch: MicroBatch, forward: Callable[[Tensor], Tensor], /) -> Tensor: ...


class Audit:
    """Repeats shares of the steps that are due.

    Args:
        every: steps between audits. The first step of a start is audited too.
        first: the first step of this start, from 0.
        losses: computes the losses of a micro-batch as the step does.

    Attributes:
        peer: the rank whose share this one repeats, if possible on another node.
        digest: measures the gradients of this rank's own share.

    Raises:
        UserError: no rank has all weights (ZeRO-3).
    """

    def __init__(self, every: int, first: int, engine: Engine, model: PreparedModel, losses: ShareLosses):
        if engine.recipe.engine.zero == 3:
            raise UserError(NEEDS_ALL_WEIGHTS)
        self.every, self.first, self.engine, self.model, self.losses = every, first, engine, model, losses
        self.world = this_process()
        self.shifts = audit_shifts(self.world)
        self.rank = self.world.rank
        self.peer = self._rank_after(self.shifts[0])
        self.digest = GradientDigest(engine.names, engine.accelerator.device)
        self.nodes: list[str] = gather_object([os.environ.get("SLURMD_NODENAME", socket.gethostname())])
        precision = engine.accelerator.mixed_precision
        self.rounding = rounding_of("float32" if precision == "no" else precision)[0]
        if self._is_exact():
            self.rounding = 0.0
        self.last_equal: int | None = None  # the number of the last step in which all ranks agreed

    def is_due(self, step: int) -> bool:
        """Return whether step `step`, from 0, is audited."""
        return step == self.first or (step + 1) % self.every == 0

    def check(
        self,
        step: int,
        own: ShareResult,
        repeated: Iterable[MicroBatch],
        load: Callable[[int], Iterable[MicroBatch]],
    ) -> None:
        """Compare the shares of a step, before its update. All ranks call it together.

        Args:
            own: what this rank computed from its share.
            repeated: the micro-batches of the peer's share.
            load: returns the micro-batches of the share of a rank in this step.

        Raises:
            WrongResult: some ranks computed something else than the others.
            UserError: memory runs out.
        """
        mine = [
            ComputedShare(self.rank, self.rank, own),
            ComputedShare(self.peer, self.rank, self._repeat(repeated, step)),
        ]
        shares: list[ComputedShare] = gather_object(mine)
        if not disagreement(shares, self.rounding):
            if self.last_equal is None:
                how = "within rounding" if self.rounding else "bit for bit"
                print_on_main(f"audit: all ranks agree {how}; another one every {self.every} steps")
            self.last_equal = step + 1
            return
        for shift in self.shifts[1:]:
            owner = self._rank_after(shift)
            shares += gather_object([ComputedShare(owner, self.rank, self._repeat(load(owner), step))])
        suspects = find_suspects(shares, self.rounding)
        raise WrongResult(self._sentence(step + 1, suspects), self.nodes[self.rank], self.rank in suspects.wrong)

    def result(self, inputs: Iterable[int], masks: Tensor, loss_sum: Tensor) -> ShareResult:
        """Return the result of a share whose gradients `digest` has measured.

        Args:
            inputs: sums of the digests of its micro-batches.
            masks: that of the masks, an int64 scalar.
            loss_sum: the sum of the losses, a float64 scalar.
        """
        norm = self.digest.square.sqrt().item()
        return ShareResult((*inputs, int(masks)), loss_sum.item(), norm, int(self.digest.bits))

    def _repeat(self, batches: Iterable[MicroBatch], step: int) -> ShareResult:
        try:
            with oom_on_any_rank(self.engine.accelerator):
                result = self._compute(batches)
        except OutOfMemory:
            raise UserError(
                f"out of memory in the audit of step {step + 1}, which holds the gradients of one more pass: submit "
                f"with a smaller --micro-batch, or without --audit"
            ) from None
        return result

    def _compute(self, batches: Iterable[MicroBatch]) -> ShareResult:
        engine = self.engine
        inputs = [0] * (len(INPUT_KINDS) - 1)
        masks = torch.zeros((), dtype=torch.int64, device=engine.accelerator.device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=engine.accelerator.device)
        parameters = [parameter for parameter in engine.names if parameter.requires_grad]
        with self.digest:
            for batch in batches:
                losses = self.losses(batch, engine.module)
                # Not `backward`, which would accumulate the gradient and let DDP or DeepSpeed all-reduce it.
                loss = engine.scaled(losses.sum() * engine.micro_batch_weight)
                torch.autograd.grad(loss, parameters, allow_unused=True)
                inputs = [total + one for total, one in zip(inputs, batch.digest)]
                masks += self.model.drop_path.digest(batch.weights)
                loss_sum += losses.detach().double().sum()
        if self.model.bn_stats:
            self.model.bn_stats.add(0)  # discards the statistics of the repetition
        return self.result(inputs, masks, loss_sum)

    def _rank_after(self, shift: int) -> int:
        return (self.rank + shift) % self.world.size

    def _is_exact(self) -> bool:
        """Return whether all ranks are expected to compute the same bits."""
        device = self.engine.accelerator.device
        on_gpu = device.type == "cuda"
        hardware = gather_object([torch.cuda.get_device_name(device) if on_gpu else _cpu()])
        return len(set(hardware)) == 1 and (not on_gpu or self.engine.recipe.engine.deterministic)

    def _sentence(self, step: int, suspects: Suspects) -> str:
        ranks = sorted(suspects.wrong)
        named = " and ".join(f"rank {rank} on {self.nodes[rank]}" for rank in ranks)
        what = suspects.wrong[ranks[0]]
        if suspects.is_certain:
            did = "read other inputs" if what == "inputs" else f"computed another {what}"
            found = f"{named} {did} in step {step} than the other ranks that did the same part of it"
        else:
            found = f"{named} disagree about the {what} of step {step}, and no majority says which of them is wrong"
        if self.last_equal is None:
            return found
        return f"{found}; checkpoints after step {self.last_equal} may hold wrong numbers"


def audit_shifts(world: World) -> list[int]:
    """Return how far the ranks are whose shares a rank repeats: always the first, the others after a disagreement."""
    nodes = world.size // world.local_size
    shift = world.local_size if nodes > 1 else 1
    return [shift, shift + 1] if world.size > 2 else [1, 0, 1]


def _cpu() -> str:
    """Return what decides which kernels a CPU runs: its model, its instructions and the number of threads."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()}"
