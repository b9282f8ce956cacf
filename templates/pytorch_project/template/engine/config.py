"""The settings of a run: read from config.yaml and `--set key=value`, checked, and watched for keys that do nothing."""

import argparse
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, StrictBool, StrictInt, ValidationError

from engine.errors import UserError


def _not_a_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


# Not strict: YAML 1.1 reads 1e-3 (no dot) as text, which means the number all the same.
Number = Annotated[float, BeforeValidator(_not_a_bool)]
Positive = Annotated[StrictInt, Field(ge=1)]


class Config(BaseModel):
    """Every setting of the project, its default and what it may be."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: Literal["cnn", "resnet", "vit"] = Field("cnn", description="architecture, a file in models/")
    num_classes: StrictInt = Field(10, ge=2, description="number of classes; must be that of the data set")
    blocks_per_stage: StrictInt = Field(1, ge=1, description="of resnet: n of the 6n + 2 layers")
    shortcut: Literal["A", "B"] = Field("A", description="of resnet: A pads with zeros, B is a 1x1 convolution")
    variant: Literal["micro", "mini", "Ti", "S", "B", "L", "H"] = Field(
        "micro", description="of vit: see models/vit.py"
    )
    patch_size: StrictInt | None = Field(None, ge=1, description="of vit: in pixels; null is that of the variant")
    positions: Literal["learned", "none", "relative"] = Field("learned", description="of vit: how it knows where")
    dropout: Number = Field(0.0, ge=0, lt=1, description="of vit: share of activations dropped in training")

    dataset: Literal["cifar10", "digits", "imagenet"] = Field("cifar10", description="data set, see data/sources.py")
    data_dir: str = Field("data/raw", min_length=1, description="where data sets are; the variable KIT_DATA goes first")
    image_size: StrictInt = Field(32, ge=8, description="height and width; must be that of the data set, if it has one")
    val_fraction: Number = Field(0.1, gt=0, lt=1, description="part of the training images kept for validation")
    augment: StrictBool = Field(True, description="augment the training images the way the data set calls for")
    color_jitter: Number = Field(
        0.2, ge=0, lt=1, description="change of brightness and contrast; not with rand_augment"
    )
    rand_augment: StrictInt = Field(0, ge=0, le=30, description="magnitude of two random operations an image; 0 is off")
    batch_size: StrictInt = Field(128, ge=1, description="images in a batch")
    accumulation_steps: StrictInt = Field(1, ge=1, description="batches whose gradients make up one update")
    loader: Literal["auto", "resident", "workers"] = Field("auto", description="whole data set in memory, or workers")
    num_workers: StrictInt = Field(4, ge=0, description="loader processes of the workers loader")

    epochs: StrictInt = Field(50, ge=1, description="passes over the training images; the schedule ends with them")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="update rule")
    learning_rate: Number = Field(0.001, gt=0, description="at the start of training")
    weight_decay: Number = Field(0.0001, ge=0, description="L2 penalty (adam, sgd) or decoupled decay (adamw)")
    decay_on: Literal["all", "weights"] = Field("all", description="weights leaves out biases, norms and positions")
    momentum: Number = Field(0.9, ge=0, lt=1, description="of sgd; nothing else has one")
    scheduler: Literal["cosine", "multistep", "constant"] = Field("cosine", description="course of the learning rate")
    schedule_by: Literal["epoch", "step"] = Field("epoch", description="changes after every epoch, or every update")
    min_learning_rate: Number = Field(0.0, ge=0, description="of cosine: where it ends")
    milestones: list[Positive] = Field([], description="of multistep: epochs or updates at which the rate drops to 0.1")
    warmup_steps: StrictInt = Field(0, ge=0, description="updates of linear warm-up; needs schedule_by: step")
    grad_clip: Number = Field(1.0, ge=0, description="largest norm of the gradient; 0 does not clip")
    ema_decay: Number = Field(0.0, ge=0, lt=1, description="of averaged weights, which are then scored; 0 is off")
    patience: StrictInt = Field(10, ge=1, description="epochs without a better validation accuracy before stopping")

    checkpoint_every: StrictInt = Field(1, ge=1, description="epochs between two writes of last.pt")
    keep_best: StrictInt = Field(1, ge=1, description="best checkpoints that stay; from 2 on, one file an epoch")
    keep_every: StrictInt = Field(0, ge=0, description="epochs between two checkpoints that stay; 0 keeps none")
    log_every: StrictInt = Field(10, ge=1, description="batches between two logged training metrics")
    seed: StrictInt = Field(0, ge=0, description="of everything random: split, initial weights, order, augmentation")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto is cuda where there is one")
    shard: StrictBool = Field(False, description="of several GPUs: each has a part of every weight, see sharding.py")
    sync_batchnorm: StrictBool = Field(False, description="of several GPUs: BatchNorm over the images of all")
    compile: StrictBool = Field(False, description="compile the model: a slow start, then faster steps")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field("auto", description="see engine/device.py")

    # Where each given key came from ("config.yaml:7"), and which keys the program has looked at since.
    _origin: dict[str, str] = PrivateAttr(default_factory=dict)
    _read: set[str] = PrivateAttr(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name in CONFIG_KEYS:
            self._read.add(name)
        return value

    def check_all_read(self) -> None:
        """Call when everything is built: a key that was given but that nothing looked at would change nothing.

        Raises:
            UserError: there is such a key, such as `momentum` with adam.
        """
        for key in sorted(set(self._origin) - self._read, key=list(self._origin).index):
            raise UserError(
                f"{self._origin[key]}: {key} is set, but nothing reads it with optimizer={self.optimizer}, "
                f"scheduler={self.scheduler}, schedule_by={self.schedule_by}, model={self.model}; remove it"
            )

    def as_dict(self) -> dict[str, Any]:
        """All keys and values, as plain Python, without counting as a look at any of them."""
        return self.model_dump()

    def used(self) -> dict[str, Any]:
        """The keys that something has looked at, and their values."""
        return {key: value for key, value in self.as_dict().items() if key in self._read}


CONFIG_KEYS = frozenset(Config.model_fields)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """`--config FILE` and `--set key=value ...`."""
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), metavar="FILE", help="default: config.yaml")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="key=value", help="change settings for this run"
    )


def load_config(path: Path, overrides: list[str]) -> Config:
    """Read `path` and the file that it names as its `base`, then apply `key=value` overrides in order.

    Raises:
        UserError: a file is missing or broken, or a key or value is not known.
    """
    values, origin = _read_file(path)
    if "base" in values:
        values, origin = _on_its_base(path, values, origin)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"--set {override}: write it as key=value")
        values[key], origin[key] = _parse_value(override, text), f"--set {override}"
    return make_config(values, origin)


def make_config(values: dict[str, Any], origin: dict[str, str]) -> Config:
    """Check `values`; `origin` says for each key where it came from.

    Raises:
        UserError: a key is unknown, or a value has the wrong type or size.
    """
    for key in values:
        if key not in CONFIG_KEYS:
            raise UserError(f"{origin[key]}: unknown key {key!r}; {_nearest(key)}")
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
        raise UserError(f"{origin[key]}: {key} {message} (it is {first['input']!r})") from None
    config._origin.update(origin)
    return config


def _on_its_base(path: Path, values: dict[str, Any], origin: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys of the base, with those of `path` in their place where both have one."""
    base, where = values.pop("base"), origin.pop("base")
    if not isinstance(base, str):
        raise UserError(f"{where}: base must be the path of a file (it is {base!r})")
    below, below_origin = _read_file(path.parent / base)
    if "base" in below:
        raise UserError(f"{below_origin['base']}: {path} is built on this file, which must not have a base of its own")
    return below | values, below_origin | origin


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys and values of a YAML file, and for each key the line it stands on."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        pairs = _pairs(path, node)
        values = {key.value: loader.construct_object(value, deep=True) for key, value in pairs}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run this in the project's folder, or use --config FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {problem or error}") from None
    return values, {key.value: f"{path}:{key.start_mark.line + 1}" for key, _ in pairs}


def _pairs(path: Path, node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    """The (key, value) nodes of a file that must be a flat mapping with every key once."""
    if node is None:
        raise UserError(f"{path} is empty; it needs lines such as `dataset: cifar10`")
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}:{node.start_mark.line + 1}: must consist of lines `key: value`")
    first_line: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{path}:{line}: a key must be a plain word")
        if key.value in first_line:
            raise UserError(f"{path}:{line}: {key.value} is set in line {first_line[key.value]} already; remove one")
        first_line[key.value] = line
    return node.value


def _parse_value(override: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML; quote it") from None


def _nearest(key: str) -> str:
    close = difflib.get_close_matches(key, CONFIG_KEYS, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(Config.model_fields)}"
