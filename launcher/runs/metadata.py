"""``run.json``: the metadata of a run, written at each start and read by every command that shows or uses the run."""

from pydantic import BaseModel


class DatasetMetadata(BaseModel):
    """The shards that a run trains on.

    Attributes:
        digest: identity of their contents (`data.reading.shards.ShardSet.digest`).
        classes: the names of the classes in the order of the model's outputs.
        upright: whether `bigbatch shard --upright` turned the images as their EXIF orientation says.
    """

    name: str
    digest: str
    train_images: int
    val_images: int
    classes: list[str]
    upright: bool = False


class ModelMetadata(BaseModel):
    """The model of a run.

    Attributes:
        multiply_adds: for one image; None if they could not be counted.
    """

    name: str
    parameters: int
    multiply_adds: int | None = None


class RunMetadata(BaseModel):
    """The contents of ``run.json``.

    Attributes:
        recipe: the name of the recipe; `name` is the same and is kept for older readers.
        identity: of the recipe (`recipes.schema.Recipe.identity`).
        versions: of bigbatch and the libraries underneath, by name, at the last start.
        weights_sha256: digest of the initial weights in `model.weights` (`launcher.runs.weights_digest`); None
            for a run from scratch, for weights from timm, and for a run that version 0.1.0 began.
    """

    name: str
    recipe: str
    identity: str
    dataset: DatasetMetadata
    model: ModelMetadata
    steps_per_epoch: int
    total_steps: int
    versions: dict[str, str] = {}
    weights_sha256: str | None = None
