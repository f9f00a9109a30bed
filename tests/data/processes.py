"""Looking at other processes."""

from pathlib import Path


def is_alive(pid: int) -> bool:
    """Return whether that process runs; a zombie, whose parent may never look at it, does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status[0] != "Z"
