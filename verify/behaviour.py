"""What a model does beyond its first logits: made late, left behind, thrown away, never told apart, other in eval mode.

Each property is measured once, when a rule first asks for it, on copies of the model. All user code runs as in
probe.py; a copy that cannot be made or run gives no verdict.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from verify.comparing import generators, seed_everything
from verify.dataflow import plain_tensors
from verify.outputs import all_logits
from verify.positions import Codes, empty_columns, one_colour, shared_codes, unread_rows
from verify.probe import FOLLOWED_BATCH, SLOWEST_FOLLOWED
from verify.rehearsal import without_dropout
from verify.samples import called_leaves, divides_by_variance, own_leaves, share_dropped
from verify.shapes import plain_sizes, sizes_of
from verify.slope import DIRECTION_SEED
from verify.tokens import Pass, TokenFlow, received, with_noise

if TYPE_CHECKING:
    from verify.probe import ModelProbe

# Small enough that whole numbers stay what they are, large enough that float32 sees it.
TINY_STEP = 3e-6
TINY_TRIES = 3
# Of the way that the parameter went while a batch was memorised.
SPREAD = 1e-3
LARGE_EPS = 0.01
# Of the largest logit; a fused kernel adds in another order.
OTHER_FUNCTION = 0.02


@dataclass(frozen=True)
class Discarded:
    """A module of which some calls had no influence on anything that forward returned."""

    name: str
    calls: int
    lost: int


class Behaviour:
    """Measures the model of a probe."""

    def __init__(self, probe: ModelProbe) -> None:
        self.probe = probe

    # -- tokens ----------------------------------------------------------------------------------------------------

    @cached_property
    def _pass(self) -> Pass | str:
        probe = self.probe
        if len(probe.input_size) != 3:
            return "only for pictures"
        if probe.eval_run.seconds > SLOWEST_FOLLOWED:
            return "one forward pass takes too long to follow its tokens"
        if probe.eval_run.repeat_change:
            return "two passes over one batch differ already (MOD105)"
        try:
            return probe.token_pass
        except Exception as error:  # scripted models take no hooks, and some have no gradient
            return f"the tokens cannot be followed ({type(error).__name__})"

    @property
    def reason_unseen(self) -> str:
        """Why nothing is known of the tokens; empty where something is."""
        return self._pass if isinstance(self._pass, str) else ""

    @cached_property
    def tokens(self) -> TokenFlow | None:
        """What becomes of the tokens; None where there are none, or where it cannot be told."""
        if isinstance(self._pass, str):
            return None
        with suppress(RuntimeError):
            return self._pass.tokens(few=self.probe.is_large)
        return None

    @cached_property
    def corner_read(self) -> tuple[str, tuple[int, int], tuple[int, int]] | None:
        """(module, place, (H, W)) if a single corner of the last feature map is read."""
        if isinstance(self._pass, str):
            return None
        with suppress(RuntimeError):
            return self._pass.corner_read()
        return None

    @cached_property
    def scattered_tokens(self) -> tuple[str, str] | None:
        """(module, what its tokens are) if the tokens of the first block are no windows of the picture."""
        if isinstance(self._pass, str):
            return None
        attends = {call.name for call in self.probe.dataflow.calls}
        with suppress(RuntimeError):
            return self._pass.scattered(attends)
        return None

    @cached_property
    def shared_codes(self) -> Codes | None:
        """What codes the places of a picture have, if some of them share one and nothing else tells them apart."""
        if isinstance(self._pass, str):
            return None
        with suppress(Exception):  # a model that takes no picture of one colour
            seed_everything(0)
            pictures = one_colour(self.probe.images(FOLLOWED_BATCH))
            block = self._pass.first_block()
            with torch.no_grad():
                given = received(self.probe.uncovered_model, block.name, pictures) if block else None
            return shared_codes(block.name, given) if block and given is not None else None
        return None

    @cached_property
    def unread_rows(self) -> list[tuple[str, int, int]]:
        """(name, rows, rows that are read) of learned tables made for the tokens, of which only a part is read."""
        if isinstance(self._pass, str):
            return []
        with suppress(RuntimeError):
            return unread_rows(self._pass)
        return []

    @cached_property
    def empty_columns(self) -> list[tuple[str, int, int]]:
        """(name, features, features that are always 0) of fixed tables made for the tokens."""
        if isinstance(self._pass, str):
            return []
        model = self.probe.model
        fixed = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
        return empty_columns(self._pass, [*fixed, *model.named_buffers(), *plain_tensors(model)])

    # -- single modules --------------------------------------------------------------------------------------------

    @cached_property
    def _own_modules(self) -> list[tuple[str, nn.Module, Tensor]]:
        probe = self.probe
        if probe.eval_run.seconds > SLOWEST_FOLLOWED or not own_leaves(probe.model):
            return []
        images = probe.images(FOLLOWED_BATCH)
        with suppress(Exception):
            model, x = probe.without_numbers(images, train=True) or (probe.copy_of_model(), images)
            return list(called_leaves(model, x, probe.model))
        return []

    @property
    def large_eps(self) -> list[tuple[str, float]]:
        """(name, eps) of batch norms that add more than rounding asks for to the variance."""
        modules = self.probe.model.named_modules()
        return [(n, m.eps) for n, m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.eps >= LARGE_EPS]

    @cached_property
    def inverse_norms(self) -> list[str]:
        """Names of modules that return a quarter where they receive four times as much."""
        return [name for name, module, given in self._own_modules if _asked(divides_by_variance, module, given)]

    @cached_property
    def dropped_branches(self) -> list[tuple[str, float]]:
        """(name, share) of modules that set whole samples to zero in train mode, and of how many."""
        shares = [(name, _asked(share_dropped, module, given)) for name, module, given in self._own_modules]
        return [(name, share) for name, share in shares if share]

    # -- parameters ------------------------------------------------------------------------------------------------

    @cached_property
    def late_parameters(self) -> list[str]:
        """Names of parameters that a fresh model lacks and that it has after its first forward pass."""
        ran = self.probe.model_that_ran
        fresh = self.probe.fresh_names[0]
        return [name for name, _ in ran.named_parameters() if name not in fresh]

    @cached_property
    def left_behind(self) -> list[str]:
        """Names of plain tensors that `to(device)` does not move and without which forward fails on another device.

        The other device is the meta device, on which nothing is computed. The model must not have run before: caches of
        its first pass would stay behind too, and are made on the right device where a model is moved first.
        """
        if not _plain_by_owner(self.probe.model):
            return []
        if self.probe.builds_alike:
            return []  # two copies of one model that may have run
        try:
            # A copy: moving a part that all builds share would take its numbers away from the others.
            model = copy.deepcopy(self.probe._build(1)).eval().to("meta")
        except Exception:
            return []
        x = torch.empty(2, *self.probe.input_size, device="meta")
        mixed = _mixes_devices(model, x)
        left = _plain_by_owner(model)
        if not mixed or not left:
            return []
        for owner, key, _, tensor in left:
            _put(owner, key, tensor.to("meta"))
        if _runs(model, x) is not None:
            return []  # it fails for another reason as well, so that nothing is known
        guilty = []
        for owner, key, name, tensor in left:
            _put(owner, key, tensor)
            if _mixes_devices(model, x):
                guilty.append(name)
            _put(owner, key, tensor.to("meta"))
        return guilty

    @cached_property
    def equal_rows(self) -> list[str]:
        """Names of parameters all of whose rows were equal at first, and still are after training moved them."""
        trained = self.probe.trained_model
        if trained is None:
            return []
        now = dict(trained.named_parameters())
        found = []
        for name, p in self.probe.model.named_parameters():
            if not p.requires_grad or not p.is_floating_point() or name not in now:
                continue
            q = now[name].detach()
            axes = [axis for axis, size in enumerate(p.shape) if size > 1]
            if len(axes) < 2 or not p.numel():
                continue
            # The first two rows alone tell most of them.
            alike = [a for a in axes if torch.equal(*p.narrow(a, 0, 2).unbind(a)) and _spread(p.detach(), a) == 0]
            if not alike:
                continue
            way = (q - p.detach()).abs().max().item()
            if way > 0 and any(_spread(q, axis) < SPREAD * way for axis in alike):
                found.append(name)
        return found

    @cached_property
    def fed_with_zeros(self) -> set[str]:
        """Names of weights of linear layers and convolutions that receive zeros alone, in a model whose forward has
        optional arguments: those that stand for zeros if nobody gives them."""
        if not _has_optional_argument(self.probe.model):
            return set()
        model = self.probe.copy_of_model().train()
        fed: dict[str, bool] = {}

        def watch(name: str) -> Any:
            def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
                given = [a for a in args if isinstance(a, Tensor)]
                fed[name] = fed.get(name, True) and bool(given) and not any(a.any().item() for a in given)

            return hook

        for name, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                module.register_forward_pre_hook(watch(name))
        seed_everything(0)
        with torch.no_grad(), suppress(Exception):
            model(self.probe.images(2))
            return {f"{name}.weight" for name, zeros in fed.items() if zeros}
        return set()

    # -- calls -----------------------------------------------------------------------------------------------------

    @cached_property
    def discarded(self) -> list[Discarded]:
        """Modules some of whose calls have no influence on what forward returns, in train and in eval mode."""
        in_eval = self._discarded(train=False)
        in_train = self._discarded(train=True) if in_eval else {}
        both = {name: min(in_eval[name], in_train[name], key=lambda d: d.lost) for name in in_eval if name in in_train}
        return [d for name, d in both.items() if not any(name.startswith(f"{other}.") for other in both)]

    def _discarded(self, *, train: bool) -> dict[str, Discarded]:
        probe = self.probe
        images = probe.images(FOLLOWED_BATCH)
        model, x = probe.without_numbers(images, train=train) or (with_noise(probe.copy_of_model()), images)
        without_dropout(model).train(train)
        made: list[tuple[str, list[Tensor]]] = []
        for name, module in model.named_modules():
            if name and any(p.requires_grad for p in module.parameters()):
                module.register_forward_hook(
                    lambda _m, _a, output, name=name: made.append((name, list(_tensors_in(output))))
                )
        seed_everything(0)
        try:
            with torch.enable_grad(), sizes_of(x):
                output = model(x)
        except Exception:  # reported elsewhere
            return {}
        kept = [t for module in model.modules() for t in _tensors_in(list(vars(module).values()))]
        reached = _ancestors([*_tensors_in(output), *kept])
        calls: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        for name, tensors in made:
            nodes = [t.grad_fn for t in tensors if t.grad_fn is not None]
            if nodes:
                calls[name] += 1
                lost[name] += not any(node in reached for node in nodes)
        return {n: Discarded(n, calls[n], lost[n]) for n in calls if 0 < lost[n] < calls[n]}

    @cached_property
    def dropped_scores(self) -> list[str]:
        """Modules in which dropout is applied to products of queries and keys before their softmax."""
        watcher = _ScoreDropout()
        probe = self.probe
        model, x = probe.without_numbers(probe.images(2), train=False) or (probe.model, probe.images(2))
        model.eval()
        handles = []
        try:
            for name, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(lambda *_, name=name: watcher.stack.append(name)))
                handles.append(module.register_forward_hook(lambda *_: watcher.leave()))
            seed_everything(0)
            with torch.no_grad(), sizes_of(x), watcher:
                model(x)
        except Exception:
            return []
        finally:
            for handle in handles:
                handle.remove()
        return list(dict.fromkeys(watcher.found))

    # -- functions -------------------------------------------------------------------------------------------------

    @property
    def has_embedding(self) -> bool:
        """Whether whole numbers are looked up somewhere."""
        return any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in self.probe.model.modules())

    @cached_property
    def is_staircase(self) -> bool:
        """Whether the logits stay bit for bit what they are when the pictures change by very little."""
        model = self.probe.exercised_model
        model.eval()
        x = self.probe.images(self.probe.eval_batch)
        generator = torch.Generator().manual_seed(DIRECTION_SEED - 2)
        with torch.no_grad():
            seed_everything(0)
            before = self.probe.forward(model, x, "in eval mode")
            for _ in range(TINY_TRIES):
                step = TINY_STEP * torch.randn(x.shape, generator=generator).to(x)
                seed_everything(0)
                if torch.equal(self.probe.forward(model, x + step, "in eval mode"), before):
                    return True
        return False

    @cached_property
    def other_in_eval(self) -> float:
        """Largest difference between the logits of eval mode and those of train mode with normalisation and dropout
        in eval mode, relative to the largest logit; 0 where a difference is meant or cannot be told."""
        try:
            return self._other_in_eval()
        except Exception:  # reported elsewhere
            return 0.0

    def _other_in_eval(self) -> float:
        if self.probe.is_large and self._same_untrained():
            return 0.0
        model = without_dropout(copy.deepcopy(self.probe.exercised_model))
        batch, classes = self.probe.eval_batch, self.probe.num_classes
        x, swapped = self.probe.images(batch), self.probe.images(batch, seed=1)
        swapped[0] = x[0]
        with torch.no_grad():
            seed_everything(0)
            in_eval = all_logits(model.eval()(x.clone()), len(x), classes)
            model.train()
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd):
                    module.eval()
                if isinstance(module, nn.MultiheadAttention):
                    module.dropout = 0.0
            before = {name: t.clone() for name, t in model.state_dict().items()}
            seed_everything(0)
            draws = generators()
            in_train = all_logits(model(x.clone()), len(x), classes)
            if generators() != draws or len(in_train) > 1 or len(in_eval) > 1:
                return 0.0
            others = all_logits(model(swapped), len(x), classes)[0]
            if any(not torch.equal(t, before[name]) for name, t in model.state_dict().items() if name in before):
                return 0.0
        a, b = in_eval[0], in_train[0]
        scale = max(a.abs().max().item(), b.abs().max().item())
        if not scale or not a.isfinite().all() or not b.isfinite().all():
            return 0.0
        if (others[0] - b[0]).abs().max().item() > 1e-4 * scale:
            return 0.0  # statistics of the batch, kept by no module that we know
        if a.shape[1] > 1 and torch.equal(a.argsort(dim=1), b.argsort(dim=1)):
            return 0.0  # a softmax, a temperature
        difference = (a - b).abs().max().item() / scale
        return difference if difference > OTHER_FUNCTION else 0.0

    def _same_untrained(self) -> bool:
        """Whether the untrained model gave the same logits in eval mode and, without dropout, in train mode."""
        in_eval, in_train = self.probe.eval_run.logits, self.probe.rehearsal.first_logits
        if in_eval.shape != in_train.shape or not in_eval.isfinite().all():
            return False
        return bool((in_eval - in_train).abs().max() <= OTHER_FUNCTION * in_eval.abs().max())


# -- helpers -------------------------------------------------------------------------------------------------------


def _asked(question: Callable[[nn.Module, Tensor], float], module: nn.Module, given: Tensor) -> float:
    """The answer; 0 from a module that cannot be asked by itself."""
    with suppress(Exception):
        return question(module, given)
    return 0.0


def _has_optional_argument(model: nn.Module) -> bool:
    """Whether forward takes more than the images, by name and with a default."""
    try:
        arguments = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return False
    return any(a.default is None for a in arguments[1:])


def _spread(values: Tensor, axis: int) -> float:
    return (values - values.narrow(axis, 0, 1)).abs().max().item()


def _tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item, depth - 1)
    elif depth and is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            yield from _tensors_in(getattr(value, one.name, None), depth - 1)
    elif depth and not isinstance(value, type | nn.Module) and hasattr(value, "__dict__") and not callable(value):
        yield from _tensors_in(dict(vars(value)), depth - 1)


def _ancestors(tensors: list[Tensor]) -> set[Any]:
    """Every node of the graphs that these tensors hang on."""
    waiting, visited = [t.grad_fn for t in tensors], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        waiting += [parent for parent, _ in node.next_functions]
    return visited


def _plain_by_owner(model: nn.Module) -> list[tuple[nn.Module, str, str, Tensor]]:
    """(module, attribute, path, tensor) of plain float tensors that are on no meta device."""
    found = []
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() and not value.is_meta:
                found.append((module, key, f"{prefix}.{key}".lstrip("."), value))
    return found


def _put(owner: nn.Module, key: str, value: Tensor) -> None:
    vars(owner)[key] = value


def _runs(model: nn.Module, x: Tensor) -> Exception | None:
    try:
        with torch.no_grad(), plain_sizes():
            model(x)
    except Exception as error:
        return error
    return None


def _mixes_devices(model: nn.Module, x: Tensor) -> bool:
    error = _runs(model, x)
    return error is not None and any(words in str(error) for words in ("same device", "expected device"))


class _ScoreDropout(TorchFunctionMode):
    """Follows the products of two computed tensors through arithmetic, to a dropout and on to a softmax."""

    PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum", "__matmul__", "__rmatmul__"})
    KEEPS = frozenset({
        "mul", "div", "add", "sub", "mul_", "div_", "add_", "masked_fill", "masked_fill_", "where", "__mul__",
        "__rmul__", "__truediv__", "__add__", "__radd__", "__iadd__", "__imul__", "__itruediv__", "__sub__", "float",
        "to", "view", "reshape", "contiguous",
    })  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[int, Tensor] = {}
        self.dropped: dict[int, Tensor] = {}
        self.stack: list[str] = []
        self.found: list[str] = []

    def leave(self) -> None:
        if self.stack:
            self.stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensors = [t for t in [*args, *kwargs.values()] if isinstance(t, Tensor)]
        if name == "einsum" and len(args) > 1:
            tensors = [t for a in args[1:] for t in ([a] if isinstance(a, Tensor) else a)]
        scores = any(id(t) in self.products for t in tensors)
        dropped = any(id(t) in self.dropped for t in tensors)
        if "softmax" in name and dropped:
            self.found.append(self.stack[-1] if self.stack else "")
        rate = kwargs.get("p", args[1] if len(args) > 1 else 0.5) if name in ("dropout", "dropout_") else 0
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.dim() >= 3:
            both = len(tensors) >= 2 and not any(isinstance(t, nn.Parameter) for t in tensors[:2])
            if (name in self.PRODUCTS and both) or (name in self.KEEPS and scores):
                self.products[id(result)] = result
            if isinstance(rate, float | int) and rate > 0 and scores:
                # Without training a dropout hands its argument through; a product of its own must not look dropped.
                self.products[id(result)] = self.dropped[id(result)] = result
            elif name in self.KEEPS and dropped:
                self.dropped[id(result)] = result
        return result
