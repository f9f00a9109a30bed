"""Which engine settings go together, and what the open ones are where nothing can be planned."""

from recipes.errors import UserError
from recipes.schema import Recipe


def with_default_engine(recipe: Recipe) -> Recipe:
    """Return the recipe with every "auto" of its engine but `precision` turned off: no ZeRO, offload or checkpointing.

    Raises:
        UserError: the engine settings contradict each other.
    """
    engine = recipe.engine
    settled = recipe.variant(
        engine={
            "zero": 0 if engine.zero == "auto" else engine.zero,
            "offload": "none" if engine.offload == "auto" else engine.offload,
            "checkpoint_activations": engine.checkpoint_activations is True,
        }
    )
    check_engine(settled)
    return settled


def check_engine(recipe: Recipe) -> None:
    """Raise UserError where engine settings exclude each other; none but `precision` may be "auto"."""
    engine = recipe.engine
    if engine.zero and not can_shard_optimizer(recipe):
        code, name = recipe.code.optimizer, recipe.optimizer.name
        key = f"code.optimizer={code}" if code else f"optimizer.name={name}"
        raise UserError(
            f"{key} works under plain DDP only, because ZeRO gives an optimizer parts of parameters: add engine.zero=0"
        )
    if engine.offload != "none" and engine.zero == 0:
        raise UserError(
            f"engine.offload={engine.offload} needs ZeRO: add engine.zero=2, or engine.zero=3 to offload the "
            "parameters too"
        )
    if engine.compile and engine.zero == 3:
        # ZeRO-3 gathers parameters in hooks on the modules inside a block, which torch.compile cannot trace.
        raise UserError(
            "engine.compile=true does not work with engine.zero=3, which gathers parameters inside the compiled "
            "blocks: use engine.zero=2 or lower"
        )
    if engine.offload == "nvme" and engine.zero != 3:
        raise UserError("engine.offload=nvme needs engine.zero=3: DeepSpeed ignores it at other stages")
    if engine.offload == "nvme" and engine.nvme_path is None:
        raise UserError("engine.offload=nvme needs engine.nvme_path=FOLDER, a folder on a local disk")


def can_shard_optimizer(recipe: Recipe) -> bool:
    """Return whether ZeRO can run the recipe's optimizer.

    ZeRO hands an optimizer flat parts of many parameters. LAMB and LARS, for example, would take the norms of such
    parts for the norms of parameters, without any error.
    """
    return recipe.code.optimizer is None and recipe.optimizer.name in ("adamw", "sgd")
