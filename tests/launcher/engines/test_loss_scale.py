"""fp16's loss scale follows the rule of torch's GradScaler, step by step."""

import torch

from launcher.engines.loss_scale import LossScale


def test_the_scale_moves_as_torchs_does():
    ours, theirs = LossScale(), torch.amp.GradScaler("cpu")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    theirs.scale(torch.zeros(1))
    for step in range(4200):  # long enough to grow twice
        good = not (step < 3 or step == 2100)
        parameter.grad = torch.full((1,), 1.0 if good else float("inf"))
        theirs.step(optimizer)
        theirs.update()
        ours.update(good)
        assert ours.value == theirs.get_scale() and ours.good_steps == theirs.state_dict()["_growth_tracker"]
    assert ours.value == 2.0 ** (16 - 3 + 1 - 1 + 1)


def test_it_continues_from_what_a_checkpoint_kept():
    one, other = LossScale(value=1024.0, good_steps=7), LossScale()
    other.load(one.scalars())
    assert other == one
