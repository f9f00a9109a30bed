"""Names of nodes in SLURM's short notation."""

from submitit.slurm.slurm import _parse_node_list


def node_names(text: str | None) -> list[str]:
    """Return the names of a list such as ``node[1-3,7],login``; none for None or an empty text."""
    return list(_parse_node_list(text)) if text else []
