"""SRC: how images are read, normalised and augmented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verify.report import Finding, Status, shortlist
from verify.rules import Subject, rule
from verify.source import (
    Function,
    Project,
    argument,
    has_unpacking,
    literal,
    names_in,
    torch_project,
    words,
)
from verify.trace.record import Record


@rule("SRC066", severity=Status.WARN, subject=Subject.RUN)
def bgr_image(record: Record) -> Iterator[Finding]:
    """Images are read with OpenCV and never turned from BGR into RGB.

    Why it matters: a pretrained network, and the means and deviations of ImageNet, expect RGB; and the model that is
    served sees other colours than the one that was trained.
    Found by: reading the source: `cv2.imread` in the code of a data set, and no conversion anywhere in the project.
    Not an error: images read as grey, a conversion in any form, or code that only looks at masks.

    Wrong: `image = cv2.imread(path)`
    Right: `image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)`
    """
    project = torch_project(record)
    if any(_converts_colour(text) for path, text in record.sources.items() if path.endswith(".py")):
        return
    for call in project.calls:
        if project.qualified(call.func) != "cv2.imread" or len(call.args) > 1 or call.keywords:
            continue
        around = project.class_of(call)
        if around is not None and any(isinstance(m, Function) and m.name == "__getitem__" for m in around.body):
            yield Finding(
                measured=ast.unparse(call),
                expected="RGB",
                message="OpenCV reads blue first, and nothing in the project converts to RGB",
                hint="cv2.cvtColor(image, cv2.COLOR_BGR2RGB)",
                location=project.at(call),
            )


def _converts_colour(text: str) -> bool:
    return bool(re.search(r"BGR2|cvtColor|::\s*-1|\[2,\s*1,\s*0\]|IMREAD_COLOR_RGB|BGR|bgr|\.flip\(|merge\(", text))


NORMALIZE = words("torchvision.transforms.Normalize torchvision.transforms.v2.Normalize")
TO_TENSOR = words(
    "torchvision.transforms.ToTensor torchvision.transforms.v2.ToTensor torchvision.transforms.ConvertImageDtype"
)
STATISTICS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10 (deviation of means)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.2860,), (0.3530,)),
    "CLIP": ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
}


@rule("SRC067", severity=Status.FAIL, subject=Subject.RUN)
def statistics_constants(record: Record) -> Iterator[Finding]:
    """The constants of `Normalize` are swapped, or meant for pixels from 0 to 255.

    Why it matters: the inputs are far from mean 0 and deviation 1; training is slow, or nearly constant inputs teach
    nothing.
    Found by: reading the source: the pair equals the published statistics of a data set in the wrong order, the names
    say so, or numbers above 2 follow a conversion to the range 0 to 1.
    Not an error: the statistics of another data set; those of CIFAR-10 for CIFAR-100 are a note.

    Wrong: `Normalize(STD, MEAN)`, `[ToTensor(), Normalize((125.3, 123.0, 113.9), (63.0, 62.1, 66.7))]`
    Right: `Normalize(MEAN, STD)`, `[ToTensor(), Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))]`
    """
    project = torch_project(record)
    for call in project.calls:
        if project.qualified(call.func) in NORMALIZE and not has_unpacking(call):
            mean, std = argument(call, 0, "mean"), argument(call, 1, "std")
            if mean is not None and std is not None:
                yield from _judge_statistics(project, call, mean, std)


def _judge_statistics(project: Project, call: ast.Call, mean: ast.expr, std: ast.expr) -> Iterator[Finding]:
    means, stds = _numbers(project, mean), _numbers(project, std)
    named = _says(mean, "std") and _says(std, "mean")
    for name, (true_mean, true_std) in STATISTICS.items():
        if _near(means, true_std) and _near(stds, true_mean):
            yield _statistics_finding(project, call, f"these are the statistics of {name}, mean and deviation swapped")
            return
    if named and not (means and stds):
        yield _statistics_finding(project, call, "by their names, mean and deviation are swapped")
    elif max([abs(m) for m in means] + stds, default=0) > 2 and _follows_to_tensor(project, call):
        yield _statistics_finding(project, call, "the constants are for 0 to 255, but ToTensor gives 0 to 1")
    elif _near(means, STATISTICS["CIFAR-10"][0]) and _only_cifar100(project):
        yield Finding(
            status=Status.NOTE,
            measured=ast.unparse(call),
            message="these are the statistics of CIFAR-10, the data are CIFAR-100; the difference is small",
            location=project.at(call),
        )


def _statistics_finding(project: Project, call: ast.Call, message: str) -> Finding:
    return Finding(
        measured=ast.unparse(call),
        expected="Normalize(mean, std) in the range of the pixels",
        message=message,
        hint="mean comes first, and both are in the units of the tensor",
        location=project.at(call),
    )


def _numbers(project: Project, node: ast.expr) -> list[float]:
    origins = project.origins(node)
    if len(origins) != 1 or origins[0] is None:
        return []
    value = literal(origins[0])
    values = list(value) if isinstance(value, tuple | list) else [value]
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    return numbers if len(numbers) == len(values) else []


def _near(numbers: list[float], published: tuple[float, ...]) -> bool:
    return len(numbers) == len(published) and all(abs(a - b) < 0.004 for a, b in zip(numbers, published, strict=True))


def _says(node: ast.expr, what: str) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    other = "mean" if what == "std" else "std"
    return what in name.lower() and other not in name.lower()


def _follows_to_tensor(project: Project, call: ast.Call) -> bool:
    """Whether the list that holds a `Normalize` has `ToTensor` before it and nothing that may change the range."""
    around = project.parent[call]
    if not isinstance(around, ast.List | ast.Tuple):
        return False
    before = around.elts[: next(i for i, element in enumerate(around.elts) if element is call)]
    names = [project.qualified(element.func) if isinstance(element, ast.Call) else "" for element in before]
    return any(name in TO_TENSOR for name in names) and all(
        name.startswith("torchvision.transforms.") and not name.endswith("Lambda") for name in names
    )


def _only_cifar100(project: Project) -> bool:
    used = {project.qualified(call.func) for call in project.calls}
    return "torchvision.datasets.CIFAR100" in used and "torchvision.datasets.CIFAR10" not in used


PER_IMAGE = words(
    "RandomCrop RandomResizedCrop RandomHorizontalFlip RandomVerticalFlip RandomRotation RandomAffine "
    "RandomPerspective RandomErasing RandomGrayscale ColorJitter RandAugment TrivialAugmentWide AutoAugment AugMix "
    "GaussianBlur RandomInvert "
    "RandomZoomOut RandomIoUCrop RandomPhotometricDistort RandomPosterize RandomSolarize ScaleJitter ElasticTransform"
)
CONTAINERS = words("Compose RandomApply RandomChoice RandomOrder Sequential")


@rule("SRC069", severity=Status.WARN, subject=Subject.RUN)
def batch_wide_augmentation(record: Record) -> Iterator[Finding]:
    """A random transform is called on a whole batch.

    Why it matters: torchvision draws once a call, so every image of the batch gets the same crop and the same flip:
    most of the augmentation is lost.
    Found by: reading the source: a transform of torchvision called on what a loop over a loader gives.
    Not an error: MixUp and CutMix, which are made for batches; kornia; a transform called image by image.

    Wrong: `for x, y in loader: x = v2.RandomCrop(32, 4)(x)`
    Right: the transform in the data set, where it sees one image
    References: pytorch/vision issue 8484.
    """
    project = torch_project(record)
    for call in project.calls:
        if len(call.args) != 1 or call.keywords or not isinstance(call.args[0], ast.Name):
            continue
        if not is_batch(project, call.args[0]):
            continue
        names = _random_transforms(project, call.func)
        if names:
            yield Finding(
                measured=ast.unparse(call),
                expected="one draw for each image",
                message=f"{shortlist(names)} draws once for the whole batch: all its images get the same",
                hint="put it into the transform of the data set",
                location=project.at(call),
            )


def _random_transforms(project: Project, node: ast.expr, depth: int = 0) -> list[str]:
    """The random transforms that calling a value applies."""
    found: list[str] = []
    for origin in project.origins(node) if depth < 4 else []:
        if not isinstance(origin, ast.Call):
            continue
        library, _, name = project.qualified(origin.func).rpartition(".")
        if library not in ("torchvision.transforms", "torchvision.transforms.v2", "torch.nn"):
            continue
        if name in PER_IMAGE and library != "torch.nn":
            found.append(name)
        elif name in CONTAINERS and origin.args:
            parts = origin.args[0].elts if isinstance(origin.args[0], ast.List | ast.Tuple) else origin.args
            inner = [isinstance(part, ast.Call) and project.qualified(part.func).endswith("Lambda") for part in parts]
            if not any(inner):
                found += [item for part in parts for item in _random_transforms(project, part, depth + 1)]
    return found


def is_batch(project: Project, node: ast.Name) -> bool:
    """Whether a name is what a loop over a loader gives, at this place."""
    for up in project.ancestors(node):
        if isinstance(up, ast.ListComp | ast.GeneratorExp | ast.DictComp | ast.SetComp | ast.Lambda):
            return False
        if isinstance(up, Function):
            return False
        if isinstance(up, ast.For):
            inner = up.iter
            while isinstance(inner, ast.Call) and inner.args and _wraps_iterable(project, inner):
                inner = inner.args[0]
            made = project.all_from(inner, ["torch.utils.data.DataLoader"]) or _is_called_loader(inner)
            if made and node.id in names_in(up.target):
                return True
            if node.id in names_in(up.target):
                return False
    return False


def _is_called_loader(node: ast.expr) -> bool:
    """A loader by its name, where it comes from a function, a dict or an attribute."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return bool(re.search(r"(^|_)(data)?loader$|_dl$|^loader|^dataloader", name.lower()))


def _wraps_iterable(project: Project, call: ast.Call) -> bool:
    return project.builtin(call.func) == "enumerate" or project.qualified(call.func).startswith("tqdm")
