"""A plugin of pytest: the rules about a model as tests. It does nothing unless it is asked to.

    pytest --kit                          every `verify.yaml` that is collected becomes one test a rule
    pytest --kit-verify=net.py:Net        the same for a model that is named
    def test_net(kit_verify):             a report inside a test of one's own
        kit_verify("net.py:Net", num_classes=10).assert_passed()

Whatever is imported here, every run of pytest pays for: nothing of the verifier is before it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from verify.report import Check, Report
    from verify.rules import Rule
    from verify.spec import Spec

SPEC_FILE = "verify.yaml"
TIMEOUT = 120.0


class RuleFailedError(Exception):
    """A rule did not hold, or could not be checked; the text is what the text report says about it."""


class KitWarning(UserWarning):
    """A rule that warns: likely wrong, or meant."""


REPORTS: pytest.StashKey[dict[str, Report]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the kit."""
    group = parser.getgroup("kit", "verify PyTorch models")
    group.addoption("--kit", action="store_true", help=f"collect {SPEC_FILE} files: one test a rule")
    group.addoption(
        "--kit-verify",
        action="append",
        default=[],
        metavar="TARGET",
        help="also verify this model, such as net.py:Net; repeatable",
    )
    group.addoption(
        "--kit-timeout", type=float, default=TIMEOUT, metavar="S", help=f"seconds for a model ({TIMEOUT:g})"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the reports of the session."""
    config.stash[REPORTS] = {}


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Take a `verify.yaml`, if --kit asks for it."""
    if file_path.name == SPEC_FILE and parent.config.getoption("--kit"):
        return SpecFile.from_parent(parent, path=file_path)
    return None


@pytest.hookimpl(tryfirst=True)  # so that -k and -m see them
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the tests of the models that --kit-verify names."""
    for target in config.getoption("--kit-verify"):
        model = NamedModel.from_parent(session, name=target, nodeid=target, path=config.rootpath)
        items.extend(model.collect())


class RuleCollector(pytest.Collector):
    """Something that says which model to verify; its tests are the rules."""

    folder: Path

    def spec(self) -> Spec:
        """What to verify.

        Raises:
            SpecError: it cannot be read, or names no model.
        """
        raise NotImplementedError

    def collect(self) -> Iterable[RuleItem]:
        """One test a rule that applies."""
        from verify.rules import select_rules
        from verify.spec import SpecError

        try:
            spec = self.spec()
            rules = select_rules(spec.select, spec.ignore)
        except (SpecError, ValueError) as error:
            raise self.CollectError(f"kit: {error}") from None
        for rule in rules:
            yield RuleItem.from_parent(self, name=f"{rule.code}-{rule.name}", rule=rule, spec=spec, folder=self.folder)


class SpecFile(RuleCollector, pytest.File):
    """A `verify.yaml`."""

    def spec(self) -> Spec:
        """What the file says."""
        from verify.spec import Spec, SpecError, load_spec

        self.folder = self.path.parent
        spec = Spec(**load_spec(self.path))
        if not spec.model:
            raise SpecError(f"{self.path} names no model; add a line such as `model: models/model.py:build_model`")
        return spec


class NamedModel(RuleCollector):
    """A model that the command line names; its file is looked up in the root of the tests."""

    def spec(self) -> Spec:
        """Just the model."""
        from verify.spec import Spec

        self.folder = self.config.rootpath
        return Spec(model=self.name)


class RuleItem(pytest.Item):
    """One rule, applied to one model. All rules of a model are checked together, when the first one is due."""

    def __init__(self, *, rule: Rule, spec: Spec, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.rule, self.spec, self.folder = rule, spec, folder

    def runtest(self) -> None:
        """Look up what the rule found.

        Raises:
            RuleFailedError: it found something, or could not be checked.
        """
        from verify.render import check_text
        from verify.report import Status

        report = self._report()
        checks = [check for check in report.checks if check.code == self.rule.code]
        bad = [check for check in checks if check.status in (Status.FAIL, Status.ERROR)]
        if bad:
            raise RuleFailedError("\n".join(map(check_text, bad)))
        if not checks:
            _not_checked(report.checks, self.rule.code)
        told = [check for check in checks if check.status in (Status.WARN, Status.NOTE)]
        for check in told:
            if check.status is Status.WARN:
                self.warn(KitWarning(check_text(check)))
            else:
                self.add_report_section("call", "note", check_text(check))
        if all(check.status is Status.SKIP for check in checks):
            pytest.skip(checks[0].message)

    def _report(self) -> Report:
        """Of this model, for the rules that were not deselected."""
        siblings = [item for item in self.session.items if isinstance(item, RuleItem) and item.parent is self.parent]
        codes = [item.rule.code for item in siblings]
        settings = {**vars(self.spec), "select": codes, "ignore": []}
        return _verify(self.config, settings, self.folder, {"timeout": self.config.getoption("--kit-timeout")})

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The text of the check instead of a traceback."""
        if isinstance(excinfo.value, RuleFailedError | KitWarning):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where pytest says that the test is."""
        return self.path, 0, f"{self.rule.code} {self.rule.name} of {self.spec.model}"


def _not_checked(checks: list[Check], code: str) -> None:
    """A rule that the verifier did not get to is skipped if another test fails for it, and fails itself if not."""
    from verify.report import Status

    errors = [check.code for check in checks if check.status is Status.ERROR]
    if errors:
        pytest.skip(f"not reached, see {errors[0]}")
    raise RuleFailedError(f"{code} was not checked")


@pytest.fixture(scope="session")
def kit_verify(pytestconfig: pytest.Config) -> Callable[..., Report]:
    """A function that verifies a model and returns the report: `kit_verify(target, num_classes=10)`.

    Keyword arguments are the keys of `verify.yaml` (`kwargs`, `input_size`, `select` ...), and `folder` (the root of
    the tests), `device` (`auto`, `cpu`, `cuda`) and `timeout` (seconds). A model that was verified with the same
    arguments before in this session is not verified again. The report has `assert_passed()` and
    `assert_held("MOD104")`.
    """

    def verify(model: str, *, folder: str | Path | None = None, **options: Any) -> Report:
        __tracebackhide__ = True
        run: dict[str, Any] = {
            name: options.pop(name) for name in ("device", "timeout", "require_gpu") if name in options
        }
        run.setdefault("timeout", pytestconfig.getoption("--kit-timeout"))
        return _verify(pytestconfig, {"model": model, **options}, Path(folder or pytestconfig.rootpath), run)

    return verify


def _verify(config: pytest.Config, settings: dict[str, Any], folder: Path, run: dict[str, Any]) -> Report:
    from verify.runner import verify_model
    from verify.spec import Spec

    reports = config.stash[REPORTS]
    key = repr((sorted(settings.items()), folder, sorted(run.items())))
    if key not in reports:
        reports[key] = verify_model(Spec(**settings), folder=folder, **run)
    return reports[key]
