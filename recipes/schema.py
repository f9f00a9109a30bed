"""The recipe: everything that decides what a run computes, typed and validated.

A recipe fixes the trajectory of a run. Its sections ``engine`` and ``run`` do not change the trajectory: they say how
it is computed and what is saved. They and the paths of the data are left out of the recipe's identity.

To add a key, declare it with `recipes.sections.added_in` and the version that first has it. Its default must mean what
runs did before the key existed. The key then enters a recipe's identity only where it has another value, so old runs
keep their identity. The same holds for a whole section.
"""

import hashlib
import json
import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, PrivateAttr, model_validator

from recipes.input_sections import AugmentSettings, InputSettings, MixSettings
from recipes.run_sections import BranchSettings, EngineSettings, RunSettings
from recipes.sections import (
    BatchSettings,
    DataSettings,
    EmaSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    ScheduleSettings,
    Section,
    added_in,
)
from recipes.user_code import CodeSettings

Values = dict[str, Any]  # plain YAML values by key, nested by section
_FROM_FILE = "file"  # replaces the path in model.weights in a trajectory


class Recipe(Section):
    """A complete recipe. ``recipes.load.load`` returns one from the catalogue or a file, with overrides."""

    name: str = Field(description="name of the recipe, also that of its run directory")
    summary: str = Field("", description="one line for the table of recipes")
    source: str = Field("", description="where the values come from, and the accuracy reported there")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of every random choice of the run")
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    input: InputSettings = InputSettings()
    augment: AugmentSettings = AugmentSettings()
    mix: MixSettings = MixSettings()
    loss: LossSettings = LossSettings()
    ema: EmaSettings = EmaSettings()
    engine: EngineSettings = EngineSettings()
    run: RunSettings = RunSettings()
    code: CodeSettings = added_in("0.2", CodeSettings(), "parts of the user's own code")
    branch: BranchSettings | None = added_in(
        "0.2", None, "where the run left its parent, as `bigbatch branch` writes it; null: the run began at step 0"
    )

    # Set by `recipes.load`, which alone knows the layers of a recipe, and only where it is not `batch.global`.
    _lr_batch: int | None = PrivateAttr(None)

    @property
    def lr_batch(self) -> int:
        """The batch size that `optimizer.lr` was chosen for.

        That is `optimizer.lr_at_batch`, or `batch.global` in the layer (a base, the recipe itself, or overrides) that
        last sets the learning rate.
        """
        return self.optimizer.lr_at_batch or self._lr_batch or self.batch.global_

    @model_validator(mode="after")
    def _is_unicode(self) -> Self:
        texts = {"name": self.name, "summary": self.summary, "source": self.source, "data.name": self.data.name}
        for key, text in texts.items():
            if re.search("[\ud800-\udfff]", text):
                raise ValueError(f"{key}={text!a} has a character that Unicode does not have: write it without")
        return self

    @model_validator(mode="after")
    def _copies_in_different_slices(self) -> Self:
        if self.augment.repeats > self.batch.slices:
            raise ValueError(
                f"augment.repeats {self.augment.repeats} needs as many slices, because copies of an image are never in "
                f"one slice, but batch.slices is {self.batch.slices}: raise batch.slices or set augment.repeats=1"
            )
        return self

    def variant(self, **sections: Values) -> "Recipe":
        """Return a copy with other values in some sections, e.g. ``variant(engine={"zero": 1})``.

        Raises:
            AttributeError: there is no such section.
            pydantic.ValidationError: a section has no such key, or the value is not valid.
        """
        # `model_copy(update=...)` does not validate: it would accept misspelt keys and values of the wrong type.
        changed = {
            name: getattr(self, name).model_validate({**getattr(self, name).model_dump(), **values})
            for name, values in sections.items()
        }
        return self.model_copy(update=changed)

    def with_lr_batch(self, batch: int | None) -> "Recipe":
        """Return a copy whose `optimizer.lr` was chosen for that batch size; None: for its own."""
        copy = self.model_copy()
        copy._lr_batch = None if batch == self.batch.global_ else batch
        return copy

    def to_dict(self) -> Values:
        """Return the recipe as plain YAML values, with every default spelled out."""
        return self.model_dump(mode="json", by_alias=True)

    def dotted(self) -> Values:
        """Return the plain YAML values by their dotted keys, e.g. ``optimizer.lr``."""
        found: Values = {}
        for key, value in self.to_dict().items():
            inner = value if isinstance(value, dict) else None
            found |= {key: value} if inner is None else {f"{key}.{name}": one for name, one in inner.items()}
        return found

    def trajectory(self) -> Values:
        """Return only what decides the trajectory: two recipes with equal trajectories are the same run.

        A path in ``model.weights`` is replaced by a constant, so that the file may be moved; the run directory compares
        the file's contents. Keys declared with `added_in` are left out while they have their defaults.
        """
        values = self._hashed_by_0_1_0()
        if self.model.weights_path is not None:
            values["model"]["weights"] = _FROM_FILE
        return values

    def identity(self) -> str:
        """Return the SHA-256 of the trajectory, in hexadecimal."""
        return _digest(self.trajectory())

    def has_identity(self, identity: str) -> bool:
        """Return whether a checkpoint with this identity belongs to a run of the recipe.

        Version 0.1.0 hashed the path in ``model.weights``. Such an identity is recognised while the path is the same.
        """
        return identity in (self.identity(), _digest(self._hashed_by_0_1_0()))

    def _hashed_by_0_1_0(self) -> Values:
        values = _without_new_defaults(self, self.to_dict())
        for section_or_key in ("name", "summary", "source", "engine", "run"):
            del values[section_or_key]
        for key in ("path", "cache", "cache_gib", "name", "train_images"):
            del values["data"][key]
        if values.get("branch"):  # the parent may have been moved since
            del values["branch"]["run"]
        return values


def _without_new_defaults(section: BaseModel, values: Values) -> Values:
    """Return the section's plain `values` without the keys of `added_in` that have their defaults."""
    kept = dict(values)
    for name, field in type(section).model_fields.items():
        key, value = field.alias or name, getattr(section, name)
        is_new = isinstance(field.json_schema_extra, dict) and "since" in field.json_schema_extra
        if is_new and value == field.default:
            del kept[key]
        elif isinstance(value, BaseModel):
            kept[key] = _without_new_defaults(value, values[key])
    return kept


def _digest(values: Values) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
