"""Targets: what `--model` names, turned into a function that builds the model.

cnn, resnet, vit            a reference model of the kit: three blocks; one block a stage; ViT-B/16 with 1000 classes
net.py:Net, net.py          a class, function or instance in a file
package.module:Net          the same in a module that can be imported
torchvision:resnet18        a model of torchvision, random weights
timm:resnet18               a model of timm, random weights
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from verify.faults import ModelExitedError, where_raised
from verify.spec import nearest

if TYPE_CHECKING:
    from torch import nn

HERE = Path(__file__).resolve().parent
# A checkout has the reference models once, in the template; a wheel carries the build's copy of them.
REFERENCE_FOLDERS = (
    HERE.parent / "templates" / "pytorch_project" / "template" / "models",
    HERE / "reference_models",
)
LIBRARIES = ("timm", "torchvision")


class TargetError(Exception):
    """The target cannot be used; the text is one clear sentence."""


@dataclass(frozen=True)
class Reference:
    """A model of the template that has a short name. `input_size` is (C, H, W)."""

    file: str
    attribute: str
    input_size: tuple[int, int, int]
    num_classes: int


REFERENCES = {
    "cnn": Reference("cnn.py", "SimpleCNN", (3, 32, 32), 10),
    "resnet": Reference("resnet.py", "ResNet", (3, 32, 32), 10),
    "vit": Reference("vit.py", "vit", (3, 224, 224), 1000),
}


@dataclass
class Target:
    """A model that can be built, as often as needed.

    Args:
        name: as the user wrote it.
        build: returns a new model; whatever the user's code raises passes through.
        input_size: (C, H, W) if the target knows it.
        num_classes: number of logits if the target knows it; 0 for an encoder, which has none.
        notes: what the verifier assumed, for the report.
    """

    name: str
    build: Callable[[], nn.Module]
    input_size: tuple[int, ...] | None = None
    num_classes: int | None = None
    notes: list[str] = field(default_factory=list)


def resolve(name: str, kwargs: dict[str, Any], num_classes: int | None, folder: Path) -> Target:
    """Find the target called `name`; files and modules are looked up from `folder`.

    Raises:
        TargetError: there is no such target, its module cannot be imported, or `kwargs` do not fit it.
    """
    if name in REFERENCES:
        return _reference(name, kwargs, num_classes)
    head, _, attribute = name.rpartition(":")
    if head in LIBRARIES:
        return _library_model(head, attribute, kwargs, num_classes)
    if name.endswith(".py"):
        head, attribute = name, ""
    if not head:
        raise TargetError(
            f"no model is called {name!r}{nearest(name, list(REFERENCES))}; name one of {', '.join(REFERENCES)}, "
            "or file.py:Class, package.module:Class, timm:NAME, torchvision:NAME"
        )
    module = _load_file(head, folder) if head.endswith(".py") else _load_module(head, folder)
    obj = _attribute(module, attribute, head) if attribute else _only_model(module, head)
    return _from_object(name if attribute else f"{name}:{obj.__name__}", obj, kwargs, num_classes)


def _reference(name: str, kwargs: dict[str, Any], num_classes: int | None) -> Target:
    reference = REFERENCES[name]
    folder = next((folder for folder in REFERENCE_FOLDERS if (folder / reference.file).exists()), None)
    if folder is None:
        raise TargetError(f"the reference model {name!r} is missing from this installation; install the kit again")
    module = _execute(folder / reference.file, name)
    classes = num_classes or reference.num_classes
    target = _from_object(name, getattr(module, reference.attribute), kwargs, classes)
    side = kwargs.get("image_size")
    target.input_size = (reference.input_size[0], side, side) if isinstance(side, int) else reference.input_size
    target.num_classes = classes
    return target


def _library_model(library: str, model_name: str, kwargs: dict[str, Any], num_classes: int | None) -> Target:
    try:
        package = importlib.import_module("torchvision.models" if library == "torchvision" else library)
    except ImportError as error:
        raise TargetError(f"{library} cannot be imported ({error}); install it with `pip install {library}`") from None
    known = package.list_models()
    if model_name not in known:
        raise TargetError(f"{library} has no model called {model_name!r}{nearest(model_name, known)}")
    options = dict(kwargs) if num_classes is None else {"num_classes": num_classes, **kwargs}
    if library == "torchvision":
        size = (3, 299, 299) if model_name == "inception_v3" else (3, 224, 224)
        return Target(f"{library}:{model_name}", lambda: package.get_model(model_name, weights=None, **options), size)
    config = package.get_pretrained_cfg(model_name)
    size = tuple(config.input_size) if config else (3, 224, 224)
    is_encoder = config and config.num_classes == 0 and not options.get("num_classes")
    classes = 0 if is_encoder else None
    return Target(f"{library}:{model_name}", lambda: package.create_model(model_name, **options), size, classes)


def _load_file(file: str, folder: Path) -> ModuleType:
    path = (folder / file).resolve()
    if not path.is_file():
        raise TargetError(f"{file} does not exist (looked in {folder})")
    # A script sees its own folder first; a file in a project also sees the project, as under `python -m`.
    for entry in (folder.resolve(), path.parent):
        _make_importable(entry)
    if (path.parent / "__init__.py").is_file():
        root, name = _package_of(path)
        _make_importable(root)
        return _import(lambda: importlib.import_module(name), file)
    return _execute(path, file)


def _make_importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _package_of(path: Path) -> tuple[Path, str]:
    """The folder above the outermost package that `path` is in, and its dotted name from there.

    A file of a package is imported as such, or its relative imports would fail.
    """
    parts, folder = [path.stem], path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return folder, ".".join(parts)


def _execute(path: Path, name: str) -> ModuleType:
    """Import a file that is in no package."""
    module_name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up while it is being imported
    _import(lambda: spec.loader.exec_module(module), name)  # type: ignore[union-attr]
    return module


def _load_module(name: str, folder: Path) -> ModuleType:
    _make_importable(folder.resolve())
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise TargetError(f"there is no module {name!r} (looked in {folder} and in the installed packages)")
    return _import(lambda: importlib.import_module(name), name)


def _import(load: Callable[[], Any], name: str) -> Any:
    try:
        return load()
    except SystemExit as error:
        raise ModelExitedError("while it was imported", error.code) from None
    except Exception as error:
        raise TargetError(
            f"{where_raised(error) or name} raises {type(error).__name__}: {_first_line(error)}"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def _attribute(module: ModuleType, attribute: str, head: str) -> Any:
    obj: Any = module
    for part in attribute.split("."):
        if not hasattr(obj, part):
            names = [name for name in vars(module) if not name.startswith("_")]
            raise TargetError(f"{head} has no {attribute!r}{nearest(attribute, names)}")
        obj = getattr(obj, part)
    return obj


def _only_model(module: ModuleType, head: str) -> Any:
    from torch import nn

    models = [
        obj
        for obj in vars(module).values()
        if inspect.isclass(obj) and issubclass(obj, nn.Module) and obj.__module__ == module.__name__
    ]
    if len(models) != 1:
        names = ", ".join(f"{head}:{model.__name__}" for model in models) or "none"
        raise TargetError(f"{head} alone does not say which model is meant; its model classes are: {names}")
    return models[0]


def _from_object(name: str, obj: Any, kwargs: dict[str, Any], num_classes: int | None) -> Target:
    from torch import nn

    if isinstance(obj, nn.Module):
        if kwargs:
            raise TargetError(f"{name} is a model already, not a class or function, so it takes no kwargs")
        return Target(name, lambda: copy.deepcopy(obj), notes=[f"{name} is one instance; copies of it are checked"])
    if not callable(obj):
        raise TargetError(f"{name} is a {type(obj).__name__}; a target must be a class, a function or a model")
    arguments, notes = _arguments(name, obj, kwargs, num_classes)
    return Target(name, lambda: obj(**arguments), notes=notes)


def _arguments(
    name: str, obj: Callable, kwargs: dict[str, Any], num_classes: int | None
) -> tuple[dict[str, Any], list[str]]:
    """The arguments for `obj`: the given ones, and the number of classes where it asks for it by that name."""
    try:
        signature = inspect.signature(obj)
    except (TypeError, ValueError):
        return dict(kwargs), []
    arguments, notes = dict(kwargs), []
    wanted = signature.parameters.get("num_classes")
    if wanted and "num_classes" not in arguments:
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        elif wanted.default is inspect.Parameter.empty:
            arguments["num_classes"] = 10
            notes.append("built with num_classes=10; --num-classes sets another")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = list(signature.parameters)
        unknown = next((key for key in arguments if f"'{key}'" in str(error)), "")
        raise TargetError(
            f"{name}{signature} does not fit: {error}{nearest(unknown, known) if unknown else ''}; "
            "arguments are given with --kwargs key=value,..."
        ) from None
    return arguments, notes
