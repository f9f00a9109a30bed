"""Makes every Python process that has this folder in PYTHONPATH see GPUs that do not exist; Python imports it at start.

    PYTHONPATH=$PWD:tests/cuda_stand_in STAND_IN_GPUS=2 bigbatch train demo --data shards/digits

Tensors "on a GPU" are tensors in the memory of the CPU, and NCCL is gloo. The Python of all branches for GPUs then runs
on a machine without one: ours, Accelerate's, torch's and DeepSpeed's. That finds wrong names and arguments, branches
that are never taken, and operations or collectives that mix devices.

It cannot show what happens below Python: kernels, their numerics and speed, asynchronous execution and the races that
come with it, memory (only a single allocation that exceeds the memory of the card fails), NCCL's own rules, compilation
of kernels and of DeepSpeed's operators.
"""

from tests.cuda_stand_in.devices import follow_devices
from tests.cuda_stand_in.torch_cuda import replace_cuda

replace_cuda()
follow_devices()
