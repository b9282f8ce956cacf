"""The acceptance spec: what a project's `verify.yaml`, or the command line, says a model must be."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

SPEC_FILE = "verify.yaml"
SUFFIXES = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}
SUFFIX_TOLERANCE = 0.01


class SpecError(Exception):
    """A mistake in the spec or on the command line; its text is one clear sentence."""


@dataclass(frozen=True)
class ParamCount:
    """A number of parameters and how far off a model may be.

    Args:
        count: the number of parameters.
        slack: the largest accepted difference, in parameters.
    """

    count: int
    slack: int

    def accepts(self, measured: int) -> bool:
        """Whether `measured` parameters are as many as asked for."""
        return abs(measured - self.count) <= self.slack

    def __str__(self) -> str:
        return f"{self.count:,}" + (f" ± {self.slack:,}" if self.slack else "")


def parse_param_count(text: str | int, tolerance: str | None = None) -> ParamCount:
    """Read `86M`, `1.1M`, `86567656`, `86,567,656`.

    A plain integer is exact; with a suffix (k, M, B or G) the tolerance is 1%. `tolerance` replaces either: a
    percentage (`0.5%`), or a number of parameters (`1000`).

    Raises:
        SpecError: the text is not a number of parameters, or not a tolerance.
    """
    match = re.fullmatch(r"(\d[\d,_]*(?:\.\d+)?)\s*([kKmMbBgG]?)", str(text).strip())
    if not match:
        raise SpecError(f"expected number of parameters {text!r} is not a number; write it like 86M or 86567656")
    number, suffix = match[1].replace(",", "").replace("_", ""), match[2].lower()
    exact = float(number) * SUFFIXES.get(suffix, 1)
    if exact != int(exact) or exact < 0:
        raise SpecError(f"expected number of parameters {text!r} is not a whole number; write it like 86M or 86567656")
    count = int(exact)
    if tolerance is not None:
        return ParamCount(count, parse_tolerance(tolerance, count))
    return ParamCount(count, round(count * SUFFIX_TOLERANCE) if suffix else 0)


def parse_tolerance(text: str, count: int) -> int:
    """The number of parameters that `1%` of `count`, or the plain number `text`, stands for.

    Raises:
        SpecError: neither a percentage nor a whole number.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%?)", str(text).strip())
    if not match or (not match[2] and "." in match[1]):
        raise SpecError(f"tolerance {text!r} is neither a percentage such as 1% nor a whole number of parameters")
    return round(count * float(match[1]) / 100) if match[2] else int(match[1])


@dataclass(kw_only=True)
class TrainingSpec:
    """What a run must be: the keys of `training:` in `verify.yaml`, each of which may be left out.

    Args:
        splits: name of a split (train, val, test) to the number of its samples.
        batch_size: samples in a training batch.
        epochs: that the loop over epochs plans.
        optimizer: `name`, and any number of its parameter groups, such as `lr` or `weight_decay`.
        scheduler: class of the scheduler, with or without `LR` at its end.
        learning_rate: epoch, counted from 1, to the rate at its first step.
        clip: the norm that gradients are clipped to.
        checkpoint_every: epochs between two checkpoints.
        accuracy: epoch to the least validation accuracy after it, 0 to 1.
        augmented: the splits whose images are augmented.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": False}

    splits: dict[str, int] | None = None
    batch_size: int | None = None
    epochs: int | None = None
    optimizer: dict[str, Any] | None = None
    scheduler: str | None = None
    learning_rate: dict[int, float] | None = None
    clip: float | None = None
    checkpoint_every: int | None = None
    accuracy: dict[int, float] | None = None
    augmented: list[str] | None = None


@dataclass(kw_only=True)
class ExpectSpec:
    """What a model must be inside: the keys of `expect:` in `verify.yaml`, each of which may be left out.

    Names may be patterns: `*` stands for one part between two dots, `**` for any number of them.

    Args:
        shapes: name of a module -> shape of its output. `B` is the batch, `*` any size.
        attention: shape of the weights of every attention, [B, heads, queries, keys]; each row sums to 1.
        blocks: names of the residual blocks, for `depth`, `width` and `skips`.
        depth: number of blocks.
        width: features of what the blocks return; or each of them once, in order, where it changes.
        skips: whether every block has a skip connection.
        feature_map: the smallest side, in pixels, of a feature map before global pooling.
        bias_before_norm: whether convolutions have a bias before a batch norm.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": False}

    shapes: dict[str, list[str | int]] | None = None
    attention: list[str | int] | None = None
    blocks: str | None = None
    depth: int | None = None
    width: int | list[int] | None = None
    skips: bool | None = None
    feature_map: int | None = None
    bias_before_norm: bool | None = None

    def __post_init__(self) -> None:
        for key in ("depth", "width", "skips"):
            if getattr(self, key) is not None and not self.blocks:
                raise SpecError(f"expect: {key} needs the names of the blocks, such as `blocks: blocks.*`")
        if self.attention is not None and len(self.attention) != 4:
            raise SpecError(f"expect: attention {self.attention} must be [B, heads, queries, keys]")


@dataclass(kw_only=True)
class Spec:
    """What to verify and what it must be. The fields are the keys of `verify.yaml`.

    Args:
        model: a target, such as `cnn`, `models/model.py:build_model` or `timm:resnet18`.
        kwargs: keyword arguments of the model's constructor.
        input_size: shape of one input, (C, H, W). Found out by trial when it is not given.
        num_classes: number of logits; handed to the constructor if it takes an argument of this name.
        output_size: shape of one output, (C, H, W) or (tokens, features), of a part of a model, which has no logits.
        expect_params: number of parameters, `86M` or `86567656`; see `parse_param_count`.
        tolerance: `1%` or a number of parameters.
        frozen: patterns (`backbone.*`) of parameters that are frozen on purpose.
        train_steps: the most steps that memorising a small batch may take.
        select: prefixes of rule codes to check; all when empty.
        ignore: prefixes of rule codes to leave out.
        training: what a run must be; checked from the record of a watched run.
        expect: what the model must be inside.
        like: a target that computes the same function.
        like_kwargs: keyword arguments of its constructor.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": False}

    model: str = ""
    kwargs: dict[str, Any] = field(default_factory=dict)
    input_size: list[int] | None = None
    num_classes: int | None = None
    output_size: list[int] | None = None
    expect_params: str | int | None = None
    tolerance: str | int | None = None
    frozen: list[str] = field(default_factory=list)
    train_steps: int | None = None
    select: list[str] = field(default_factory=list)
    ignore: list[str] = field(default_factory=list)
    training: TrainingSpec | None = None
    expect: ExpectSpec | None = None
    like: str = ""
    like_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("input_size", "output_size"):
            sizes = getattr(self, key)
            if sizes is not None and (not sizes or any(size < 1 for size in sizes)):
                raise SpecError(f"{key} {sizes} must be positive numbers such as 3,224,224")
        if self.output_size is not None and (self.num_classes is not None or self.like):
            raise SpecError("output_size is for a part of a model, without logits; leave out num_classes and like")
        if self.num_classes is not None and self.num_classes < 1:
            raise SpecError(f"num_classes {self.num_classes} must be at least 1")
        if self.train_steps is not None and self.train_steps < 1:
            raise SpecError(f"train_steps {self.train_steps} must be at least 1")
        if self.like_kwargs and not self.like:
            raise SpecError("like_kwargs are arguments of the reference, which `like` must name")
        if self.tolerance is not None and self.expect_params is None:
            raise SpecError("a tolerance needs an expected number of parameters (expect_params)")
        self.param_count()

    def param_count(self) -> ParamCount | None:
        """The expected number of parameters, if one was given.

        Raises:
            SpecError: it cannot be read.
        """
        if self.expect_params is None:
            return None
        tolerance = None if self.tolerance is None else str(self.tolerance)
        return parse_param_count(self.expect_params, tolerance)


def load_spec(path: Path) -> dict[str, Any]:
    """Read and validate a `verify.yaml`; the keys that it sets, ready for `Spec(**keys)`.

    Raises:
        SpecError: the file is missing, broken, or says something that `Spec` does not know.
    """
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(
            f"{path} does not exist; name a model with --model FILE.py:CLASS --input-size C,H,W --num-classes N "
            f"(`kit facts` lists the classes), or write a {SPEC_FILE}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}{_line_of(error)} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(raw, dict):
        raise SpecError(f"{path} must be a list of keys such as `model: models/model.py:build_model`")
    known = [f.name for f in fields(Spec)]
    for key in raw:
        if key not in known:
            raise SpecError(f"{path}: unknown key {key!r}{nearest(str(key), known)}; known are {', '.join(known)}")
    return _validated(raw, path)


def _validated(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    from pydantic import TypeAdapter, ValidationError

    try:
        spec = TypeAdapter(Spec).validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][: 2 if first["loc"][0] in ("training", "expect") else 1])
        raise SpecError(f"{path}: {where}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    return {key: getattr(spec, key) for key in raw}


def _line_of(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark else ""


def nearest(word: str, known: list[str]) -> str:
    """`; did you mean 'x'?` when one of `known` is close to `word`, else nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
