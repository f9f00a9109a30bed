"""Prepares DeepSpeed for offload to a disk: it compiles the operator that reads and writes files on first use."""

import threading
from collections.abc import Callable

import torch
from torch.utils import cpp_extension

from recipes.errors import UserError

_SILENT = 3.0  # seconds that loading may take before the user is told that the operator is being compiled


def load_file_operator(say: Callable[[str], None]) -> None:
    """Load DeepSpeed's operator async_io, and compile it if that has not been done on this machine.

    Args:
        say: prints a line for the user; called from another thread if the operator is compiled.

    Raises:
        UserError: something that the compilation needs is missing, or it fails.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder  # chosen for the device by the import of DeepSpeed

    builder = AsyncIOBuilder()
    if torch.cuda.is_available() and cpp_extension.CUDA_HOME is None and torch.version.hip is None:
        raise _cannot_be_used("which needs the CUDA toolkit: install it and set CUDA_HOME")
    if not builder.is_compatible():
        raise _cannot_be_used("which needs libaio: install its headers (libaio-dev on Debian)")
    line = "DeepSpeed compiles its operator async_io, which takes minutes and is done once"
    announcement = threading.Timer(_SILENT, say, [line])
    announcement.start()
    try:
        builder.load(verbose=False)
    except (RuntimeError, OSError, ImportError) as error:
        raise _cannot_be_used(f"which failed ({str(error).splitlines()[0]}): mend that") from None
    finally:
        announcement.cancel()


def _cannot_be_used(why: str) -> UserError:
    return UserError(f"engine.offload=nvme compiles an operator of DeepSpeed, {why}, or use engine.offload=cpu")
