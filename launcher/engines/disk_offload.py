"""Prepares DeepSpeed for offload to a disk: it compiles the operator that reads and writes files on first use."""

import functools
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from launcher.engines.deepspeed_device import expect_no_gpu
from launcher.world import said_once_per_node
from recipes.errors import UserError
from recipes.schema import Recipe

_SILENT = 3.0  # seconds that loading may take before the user is told that the operator is being compiled


def check_disk_offload(recipe: Recipe) -> None:
    """Check that this machine can compile what `engine.offload=nvme` needs, if the recipe asks for it.

    That needs no other rank, so it is known before the ranks connect. Where DeepSpeed is missing, its engine says so.

    Raises:
        UserError: something is missing. One rank of each node has a message to print, since nodes may differ.
    """
    if recipe.engine.offload != "nvme" or find_spec("deepspeed") is None:
        return
    try:
        _compatible_builder()
    except UserError as error:
        raise UserError(said_once_per_node(str(error))) from None


def load_file_operator(say: Callable[[str], None]) -> None:
    """Load DeepSpeed's operator async_io, and compile it if that has not been done on this machine.

    Args:
        say: prints a line for the user; called from another thread if the operator is compiled.

    Raises:
        UserError: something that the compilation needs is missing, or it fails.
    """
    builder = _compatible_builder()
    line = "DeepSpeed compiles its operator async_io, which takes minutes and is done once"
    announcement = threading.Timer(_SILENT, say, [line])
    announcement.start()
    try:
        builder.load(verbose=False)
    except (RuntimeError, OSError, ImportError) as error:
        raise _cannot_be_used(f"which failed ({str(error).splitlines()[0]}): mend that") from None
    finally:
        announcement.cancel()


@functools.cache  # the answer takes a compiler's run
def _compatible_builder() -> Any:
    """Return DeepSpeed's builder of the operator.

    Raises:
        UserError: something that the compilation needs is missing.
    """
    if not torch.cuda.is_available():
        expect_no_gpu()
    from torch.utils import cpp_extension  # which warns at its import where there is no GPU

    if torch.cuda.is_available() and cpp_extension.CUDA_HOME is None and torch.version.hip is None:
        raise _cannot_be_used("which needs the CUDA toolkit: install it and set CUDA_HOME")
    builder = _file_operator_builder()
    if not builder.is_compatible():
        raise _cannot_be_used("which needs libaio: install its headers (libaio-dev on Debian)")
    return builder


def _file_operator_builder() -> Any:
    from deepspeed.ops.op_builder import AsyncIOBuilder  # chosen for the device by the import of DeepSpeed

    return AsyncIOBuilder()


def _cannot_be_used(why: str) -> UserError:
    return UserError(f"engine.offload=nvme compiles an operator of DeepSpeed, {why}, or use engine.offload=cpu")
