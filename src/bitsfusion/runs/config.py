"""What a run does, as read from a YAML file; every field has a default and unknown ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from bitsfusion.calibration.settings import CalibrationSettings
from bitsfusion.devices import AUTO, NAME_PATTERN
from bitsfusion.diffusion.samplers import Sampler, SamplerSteps, sampler_name
from bitsfusion.diffusion.time_features import BASIS, Cover
from bitsfusion.embedded import embedded_model, world_of
from bitsfusion.errors import InputError
from bitsfusion.io.schema import Checked, parse
from bitsfusion.io.texts import read_yaml
from bitsfusion.numerics import ScaleInit
from bitsfusion.pipelines.load import EMBEDDED
from bitsfusion.recipe.assign import Strategy
from bitsfusion.runs.prompts import prompts_of
from bitsfusion.sensitivity.settings import (
    CalibratedSettings,
    FirstOrderOptions,
    JacobianSettings,
    NoiseErrorSettings,
    PaperOptions,
    PaperSettings,
    Settings,
)
from bitsfusion.training.config import TrainingConfig


class WorldSource(Checked):
    """Scenes of an embedded model's world, drawn on the fly."""

    kind: Literal["world"] = "world"
    world: Literal["quick", "grid"] = "quick"
    pool: int = Field(8192, ge=1)
    """How many captioned scenes are drawn and encoded once."""
    task_weights: tuple[float, ...] | None = None
    """How often each of the world's tasks comes up; null: equally often."""

    @model_validator(mode="after")
    def _check(self) -> WorldSource:
        tasks = world_of(self.world).tasks
        if self.task_weights is not None and len(self.task_weights) != len(tasks):
            raise ValueError(f"task_weights: got {len(self.task_weights)}, wanted one for each of {', '.join(tasks)}")
        return self


class ImageSection(Checked):
    """What all sources of captioned images have: how they are prepared and kept."""

    resolution: int = Field(512, ge=8)
    seed: int = Field(0, ge=0)
    """Seeds the order; each epoch's own follows from it."""
    max_samples: int | None = Field(None, ge=1)
    """Only the first that many usable samples; null: all."""
    max_bad_samples: float = Field(0.01, ge=0)
    """Samples that cannot be used are left out; more of them stop the run. Below 1 a fraction, otherwise a count."""
    latents_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    latents_cache_dir: Path | None = None
    """Where encoded images are kept and found again; null: bitsfusion/latents in the user's cache folder."""

    def deciding(self) -> dict[str, Any]:
        """The options that the samples follow from, as JSON; not where they are kept, nor how many bad ones stop it."""
        return self.model_dump(mode="json", exclude={"latents_cache_dir", "max_bad_samples"})


class FolderSource(ImageSection):
    """A Hugging Face imagefolder: images beside a metadata.jsonl with file_name and text."""

    kind: Literal["imagefolder"]
    train_data_dir: Path


class HfDatasetSource(ImageSection):
    """A dataset of the `datasets` library: a hub id, a folder or file of parquet or arrow, or a saved dataset."""

    kind: Literal["hf_dataset"]
    dataset_name: str
    dataset_config_name: str | None = None
    revision: str | None = None
    split: str = "train"
    image_column: str = "image"
    caption_column: str = "text"
    streaming: bool = False
    """Read without a local copy; everything is read once, into the cache of latents, either way."""


class WebDatasetSource(ImageSection):
    """WebDataset shards: tar files with jpg, png, jpeg or webp beside txt, text or caption."""

    kind: Literal["webdataset"]
    train_shards_path_or_url: str | tuple[str, ...]
    """With brace expansion: shards/{00000..00099}.tar."""


class TrajectorySource(Checked):
    """What the teacher is given while it draws, for models that take few steps; Stage I alone, in a stage's config."""

    kind: Literal["trajectories"]
    prompts: Path | None = None
    """A file of prompts; null: the package's own, an embedded model's world's."""
    samples: int = Field(1024, ge=1)
    """Trajectories that are drawn before training begins."""
    steps: int = Field(4, ge=1)
    """The model's own number of steps."""
    guidance: float = 1.0
    """Classifier-free guidance; at 1 and below none, as few-step models are drawn."""
    resolution: int | None = Field(None, ge=8)
    """Pixels of the square pictures; null: the model's own."""
    seed: int = Field(0, ge=0)
    batch_size: int = Field(8, ge=1)
    """Drawn together."""


DataSource: TypeAlias = WorldSource | FolderSource | HfDatasetSource | WebDatasetSource


def named_data(name: str, **options: Any) -> DataSource:
    """Captioned images as a command is told of them.

    Args:
        name: tar files (a path with braces, or a folder of them) are WebDataset shards; a folder with a metadata.jsonl
            is an imagefolder; anything else is a dataset of the `datasets` library, by its id, folder or file.
        options: the fields of `ImageSection`.
    """
    path = Path(name)
    if path.is_dir() and not (path / "metadata.jsonl").is_file():
        if shards := sorted(str(each.resolve()) for each in path.glob("*.tar")):
            return WebDatasetSource(kind="webdataset", train_shards_path_or_url=tuple(shards), **options)
        dataset = any(path.rglob("*.parquet")) or any(path.rglob("*.arrow"))
    else:
        dataset = not path.is_dir()
    if not dataset:
        return FolderSource(kind="imagefolder", train_data_dir=path.resolve(), **options)
    if name.endswith(".tar"):
        return WebDatasetSource(kind="webdataset", train_shards_path_or_url=name, **options)
    found = str(path.resolve()) if path.exists() else name
    return HfDatasetSource(kind="hf_dataset", dataset_name=found, **options)


def own_data(model: str, **options: Any) -> WorldSource:
    """What an embedded model trains on, where no other data is named.

    Raises:
        InputError: another model, which has none of its own.
    """
    known = embedded_model(model)
    if known is None:
        raise InputError("data: got none, wanted --data FOLDER, shards or dataset of captioned images for this model")
    return WorldSource(world=known.world_name, **options)


def with_own_defaults(values: Any, guided: tuple[str, ...] = ()) -> Any:
    """A config's fields as read; an embedded model's own world and guidance stand in for what they do not say.

    Args:
        values: mappings and plain values; anything else is left as it is.
        guided: the sections with a field `guidance`.
    """
    known = embedded_model(values.get("model", EMBEDDED)) if isinstance(values, dict) else None
    if known is None:
        return values
    own: dict[str, Any] = {name: {"guidance": known.guidance} for name in guided}
    if "evaluation" in own:
        own["evaluation"]["sampler"] = known.sampler
    own["data"] = {"kind": "world", "world": known.world_name}
    filled = dict(values)
    for name, defaults in own.items():
        section = values.get(name, {})
        if isinstance(section, dict) and (name != "data" or section.get("kind", "world") == "world"):
            filled[name] = {**defaults, **section}
    return filled


class PaperAnalysis(PaperOptions):
    """The paper's measurement as a run's config asks for it."""

    prompts: Annotated[tuple[str, ...], Field(min_length=1)] | Path | None = None
    """The prompts, or a file of them; null: the package's own, an embedded model's world's."""
    images: int | None = Field(None, ge=1)
    """K, images for each candidate, their prompts evenly spaced; null: one for each prompt."""

    def settings(self, model: str) -> PaperSettings:
        """What is measured on `model`.

        Raises:
            InputError: the file cannot be read, or there are fewer prompts than images.
        """
        texts = self._texts(model)
        images = self.images or len(texts)
        if len(texts) < images:
            raise InputError(f"analysis.prompts: got {len(texts)}, wanted {images} or more (analysis.images)")
        chosen = tuple(texts[place * len(texts) // images] for place in range(images))
        return PaperSettings(**self.model_dump(exclude={"prompts", "images"}), prompts=chosen)

    def number(self, model: str) -> int:
        """K; reads the prompts only where `images` does not say it."""
        return self.images or len(self._texts(model))

    def _texts(self, model: str) -> tuple[str, ...]:
        return self.prompts if isinstance(self.prompts, tuple) else prompts_of(model, self.prompts)


class CalibratedAnalysis(FirstOrderOptions):
    """Errors after each layer's calibration, by the config's own `calibration` and `calibration_prompts`."""

    method: Literal["calibrated"]


Analysis: TypeAlias = NoiseErrorSettings | JacobianSettings | CalibratedAnalysis | PaperAnalysis


class RecipeSection(Checked):
    """How bits are assigned (section 3.3)."""

    target_bits: float = Field(1.99, gt=0)
    strategy: Strategy = Strategy.OPTIMAL
    eta: float = Field(0.3, ge=0)
    fill_up: bool = True
    """With strategy paper: spend what the threshold leaves of the budget; false: Alg. 1 as published."""

    def deciding(self) -> dict[str, Any]:
        """What the recipe follows from, as JSON."""
        usual = {"fill_up"} if self.fill_up else set()  # so that older runs need no new recipe
        return self.model_dump(mode="json", exclude=usual)


SamplerName: TypeAlias = Annotated[str, AfterValidator(sampler_name)]
"""A scheduler of diffusers by name, or `own`: see `sampler_name`."""


class ServeSection(Checked):
    """Which time steps the packed model knows."""

    cover: Literal["basis", "any"] = "basis"
    """basis: every step, as a low-rank basis; any: every step, by time layers kept at 8 bits."""
    samplers: dict[SamplerName, Annotated[int, Field(ge=1)]] | None = None
    """Instead, exactly the steps of these samplers, such as {pndm: 50}."""

    @property
    def covers(self) -> Cover:
        """What to store of the time features."""
        if self.samplers is not None:
            return [SamplerSteps(name, steps) for name, steps in self.samplers.items()]
        return BASIS if self.cover == BASIS else None

    def deciding(self) -> dict[str, Any]:
        """What a packed model follows from, as JSON."""
        return {"cover": self.cover} if self.samplers is None else {"samplers": dict(self.samplers)}


class EvaluationSection(Checked):
    """On what the rungs are compared: the same prompts and seeds for all of them."""

    prompts: Path | None = None
    """A .txt or .jsonl file of prompts; null: an embedded model's own."""
    per_task: int = Field(100, ge=1)
    """Prompts of each task of an embedded model's world."""
    split: Literal["validation", "test"] = "test"
    sampler: Sampler = Sampler.PNDM
    steps: int = Field(50, ge=1)
    guidance: float = 7.5
    seed: int = Field(1024, ge=0)
    batch_size: int = Field(50, ge=1)
    clip: str | None = None
    """CLIP model of the score: a folder or hub id; null: none, or an embedded model's own scorer."""
    probe_samples: int = Field(512, ge=1)
    """Noisy latents on which noise error and noise loss are measured; each time step's error on 32 of them at most."""


class RunConfig(Checked):
    """A whole run."""

    model: str = EMBEDDED
    """A diffusers folder, a hub id, or an embedded model: "embedded" or "embedded:grid"."""
    device: str = Field(AUTO, pattern=NAME_PATTERN)
    """Where all of it computes: auto, cpu, cuda, cuda:1, mps; see `devices.resolve`."""
    data: Annotated[DataSource, Field(discriminator="kind")] = WorldSource()
    analysis: Annotated[Analysis, Field(discriminator="method")] = NoiseErrorSettings()
    recipe: RecipeSection = RecipeSection()
    scale_init: ScaleInit | Literal["calibrated"] = ScaleInit.EXACT
    """How the student starts; calibrated: codes, scales and biases by what the model computes (docs/calibration.md)."""
    calibration: CalibrationSettings = CalibrationSettings()
    """How a calibrated start is computed."""
    calibration_prompts: Path | None = None
    """A file of prompts for it; null: the package's own."""
    stage1: TrainingConfig = TrainingConfig(stage=1)
    stage2: TrainingConfig = TrainingConfig(stage=2)
    seeds: tuple[int, ...] = (0,)
    """Training seeds; both stages (and the control) are trained once for each, the first is packed."""
    control: bool = False
    """Also train full precision on, with Stage II's settings."""
    serve: ServeSection = ServeSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, values: Any) -> Any:
        return with_own_defaults(values, guided=("calibration", "evaluation"))

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if (self.stage1.stage, self.stage2.stage) != (1, 2):
            raise ValueError("stage1 and stage2: wanted stage 1 and stage 2")
        for name, stage in (("stage1", self.stage1), ("stage2", self.stage2)):
            if stage.device not in (AUTO, self.device):
                raise ValueError(f"{name}.device: got {stage.device}, wanted {self.device}, which is the whole run's")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: got {list(self.seeds)}, wanted one or more, none twice")
        evaluation = self.evaluation
        samplers = self.serve.samplers
        if samplers is not None and samplers.get(evaluation.sampler.value) != evaluation.steps:
            wanted = f"{evaluation.sampler.value}: {evaluation.steps}"
            raise ValueError(f"serve.samplers: wanted {wanted} among them, which the evaluation uses, or cover: basis")
        if embedded_model(self.model) is None and evaluation.prompts is None:
            raise ValueError("evaluation.prompts: got none, wanted a file of prompts for this model")
        return self

    def measured(self) -> Settings:
        """What the analysis measures, its prompts read.

        Raises:
            InputError: see `PaperAnalysis.settings`.
        """
        if isinstance(self.analysis, PaperAnalysis):
            return self.analysis.settings(self.model)
        if isinstance(self.analysis, CalibratedAnalysis):
            texts = prompts_of(self.model, self.calibration_prompts)
            return CalibratedSettings(**self.analysis.model_dump(), prompts=texts, calibration=self.calibration)
        return self.analysis

    @property
    def scorer(self) -> str | None:
        """The CLIP model of the score, if there is one."""
        known = embedded_model(self.model)
        return self.evaluation.clip or (str(known.scorer) if known else None)


def read_config(path: Path) -> RunConfig:
    """The run described by a YAML file.

    Raises:
        InputError: there is no such file, it is not YAML, or a field is unknown or out of range.
    """
    return parse(RunConfig, read_yaml(path), str(path))
