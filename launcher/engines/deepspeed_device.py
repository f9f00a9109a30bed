"""What DeepSpeed has to know before it is imported on a machine without a GPU."""

import logging
import os


def expect_no_gpu() -> None:
    """Keep DeepSpeed from warning that it has to detect the device, and torch that there is no CUDA compiler."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
