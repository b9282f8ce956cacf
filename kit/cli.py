"""The command line. Verbs import what they need when they run, so that `kit --help` stays instant."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kit import __version__

WRONG_USE = 2
INTERRUPTED = 130

app = typer.Typer(
    name="kit",
    help="Scaffold PyTorch projects that are right from the first minute, "
    "and prove that training code does what it claims.",
    rich_markup_mode=None,  # rich's help costs more than everything else that --help does
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """How a report is written to the standard output."""

    TEXT = "text"
    JSON = "json"
    JUNIT = "junit"
    SARIF = "sarif"
    GITHUB = "github"


class Device(StrEnum):
    """Where a model is run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def fail(message: object) -> typer.Exit:
    """Print one line for a mistake of the user's; the result is to be raised."""
    typer.echo(f"kit: {message}", err=True)
    return typer.Exit(WRONG_USE)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def new(
    dest: Annotated[Path, typer.Argument(help="Folder of the new project; must not exist, or be empty.")],
    model: Annotated[str, typer.Option(help="Architecture: cnn, resnet or vit.")] = "cnn",
    dataset: Annotated[
        str, typer.Option(help="Data set: cifar10, digits (small, needs no network) or imagenet (folders you bring).")
    ] = "cifar10",
    config: Annotated[str, typer.Option(help="Kind of configuration: yaml.")] = "yaml",
    tracker: Annotated[str, typer.Option(help="Experiment tracker: tensorboard.")] = "tensorboard",
    deploy: Annotated[
        bool, typer.Option("--deploy/--no-deploy", help="Add what serves the model; only --no-deploy so far.")
    ] = False,
    data: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any other answer; repeatable.")] = None,
) -> None:
    """Scaffold a project: data, model, training, evaluation, tests and an acceptance spec."""
    from kit.scaffold import ScaffoldError, new_project

    if deploy:
        raise fail("--deploy: the template has nothing to deploy a model with; leave it out")
    answers = dict(_key_value(item, "--data") for item in data or [])
    try:
        project = new_project(dest, model=model, dataset=dataset, config=config, tracker=tracker, data=answers)
    except ScaffoldError as error:
        raise fail(error) from None
    quick = "python train.py --set dataset=digits --set epochs=5   # seconds, no download"
    first = "python train.py" if dataset == "imagenet" else quick  # another number of classes, another size
    steps = [f"cd {shlex.quote(str(dest))}", "kit verify", first, "python evaluate.py"]
    typer.echo("\n  ".join([f"Created {project}. Next:", *steps]))


@app.command()
def init(
    dest: Annotated[Path, typer.Argument(help="Folder of the project.")] = Path(),
    workflows: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Of cnn, resnet, vit, debug, data, experiments, deploy, quick; all by default, none with ''.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take out again what the kit wrote.")] = False,
) -> None:
    """Add the commands and settings for Claude Code to a project; run again after an edit of .clauderc or an update."""
    from kit.claude.clauderc import ClaudeError
    from kit.claude.init import describe, plan_init, plan_removal

    if not dest.is_dir():
        raise fail(f"the folder {dest} does not exist")
    names = None if workflows is None else [name for name in workflows.replace(" ", "").split(",") if name]
    try:
        plan = plan_removal(dest.resolve()) if remove else plan_init(dest.resolve(), names)
        if not dry_run:
            plan.carry_out()
    except ClaudeError as error:
        raise fail(error) from None
    lines = list(describe(plan))
    typer.echo("\n".join(lines) if lines else "nothing to change")
    if dry_run:
        typer.echo("nothing was written (--dry-run)")
    elif not remove:
        typer.echo("next: kit doctor, then `claude` in a shell that finds kit, and type /acceptance")


@app.command()
def doctor(
    project: Annotated[Path, typer.Argument(help="Folder of the project.")] = Path(),
) -> None:
    """Find out why Claude Code does not see a command, a setting or a rule. Exit code 0: all is well, 1: it is not."""
    from kit.claude.doctor import examine

    if not project.is_dir():
        raise fail(f"the project folder {project} does not exist")
    findings = list(examine(project.resolve()))
    for finding in findings:
        typer.echo(str(finding))
    raise typer.Exit(int(any(finding.is_bad for finding in findings)))


@app.command(hidden=True)
def hook(name: Annotated[str, typer.Argument(help="start, guard, edit or stop.")]) -> None:
    """Answer an event of Claude Code; what `kit init` writes into settings.json."""
    from kit.claude.hooks import BLOCKED, HOOKS, run_hook

    if name not in HOOKS:
        raise fail(f"no hook is called {name!r}; name one of {', '.join(HOOKS)}")
    try:
        code = run_hook(name)
    except Exception as error:  # whatever it is: a guard that breaks must not let anything through
        typer.echo(f"kit hook {name}: {type(error).__name__}: {error}", err=True)
        code = BLOCKED
    raise typer.Exit(code)


@app.command()
def facts(
    project: Annotated[Path, typer.Argument(help="Folder of a project, ours or not.")] = Path(),
) -> None:
    """The state of a project in a few lines: git, versions, config, models, data, checkpoints, the newest run."""
    from kit.facts import report

    if not project.is_dir():
        raise fail(f"the project folder {project} does not exist")
    _print_whole(report(project) + "\n")


@app.command()
def verify(
    model: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="cnn, resnet, vit, file.py:Class, package.module:Class, torchvision:NAME or timm:NAME. "
            "Without it, the verify.yaml of the project says what to check.",
        ),
    ] = None,
    kwargs: Annotated[
        list[str] | None, typer.Option(metavar="K=V,...", help="Arguments of the model's constructor.")
    ] = None,
    input_size: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="Shape of one input, such as 3,224,224; else found by trial.")
    ] = None,
    num_classes: Annotated[int | None, typer.Option(metavar="N", help="Number of logits.")] = None,
    output_size: Annotated[
        str | None,
        typer.Option(metavar="C,H,W", help="Shape of one output of a block or another part, which has no logits."),
    ] = None,
    expect_params: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Parameters: 86567656 is exact, 86M within 1%.")
    ] = None,
    tolerance: Annotated[
        str | None, typer.Option(metavar="T", help="For --expect-params: 1%, or a number of parameters.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="A reference: with its weights the model must give the same logits."),
    ] = None,
    like_kwargs: Annotated[
        list[str] | None, typer.Option(metavar="K=V,...", help="Arguments of the reference's constructor.")
    ] = None,
    summary: Annotated[
        bool,
        typer.Option("--summary", help="Parameters, work and memory by module; checks shapes and counts only."),
    ] = False,
    project: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the project and its verify.yaml.")
    ] = None,
    train_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Most steps for memorising a small batch (100, bounded in time).")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to run the model.")] = Device.AUTO,
    require_gpu: Annotated[bool, typer.Option("--require-gpu", help="Exit with 2 when there is no GPU.")] = False,
    select: Annotated[
        str | None, typer.Option(metavar="CODES", help="Only these codes or families: MOD,GRD301.")
    ] = None,
    ignore: Annotated[str | None, typer.Option(metavar="CODES", help="Not these codes or families.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="At most 10 s: what runs after each edit.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Up to 5 minutes, for models that take long.")] = False,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", min=1, help="Seconds after which the model's process is killed (120).")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A record of `kit watch`: also check what verify.yaml says of the training."),
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="What goes to the standard output.")] = Format.TEXT,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a report for a browser.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the report there instead.")
    ] = None,
) -> None:
    """Check a model: shapes, parameter count, gradients, leaks between samples, saved state, short training.

    Exit code 0: all held. 1: something failed. 2: something could not be checked.
    """
    from verify.spec import SPEC_FILE, Spec, SpecError, load_spec

    folder = project or Path()
    overrides = {
        "model": model,
        "kwargs": _parse_kwargs(kwargs) if kwargs else None,
        "input_size": _parse_size(input_size, "--input-size") if input_size else None,
        "output_size": _parse_size(output_size, "--output-size") if output_size else None,
        "num_classes": num_classes,
        "expect_params": expect_params,
        "tolerance": tolerance,
        "like": like,
        "like_kwargs": _parse_kwargs(like_kwargs) if like_kwargs else None,
        "train_steps": train_steps,
        "select": _parse_codes(select),
        "ignore": _parse_codes(ignore),
    }
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        declared = load_spec(folder / SPEC_FILE) if model is None or project else {}
        spec = Spec(**{**declared, **given})
        if not spec.model:
            raise SpecError(
                f"{folder / SPEC_FILE} names no model; add a line such as `model: models/model.py:build_model`"
            )
    except SpecError as error:
        raise fail(error) from None
    if summary and not spec.select:
        from verify.rules import SHAPE_RULES

        spec.select = list(SHAPE_RULES)
    seen = _read_record(record) if record else None
    is_acceptance = not (given or quick or summary)  # the spec as it is written, and all of it
    limits = {"profile": _profile(quick, full), "timeout": timeout, "summary": summary}
    code = _verify(spec, folder, device, require_gpu, limits, Outputs(format_, output, html), seen)
    if code == 0 and is_acceptance and os.environ.get("CLAUDECODE"):
        from kit.claude.state import accept

        accept(folder.resolve())  # so that the hook that ends a session need not check the same code again
    raise typer.Exit(code)


def _profile(quick: bool, full: bool) -> Any:
    from verify.runner import DEFAULT, FULL, QUICK

    if quick and full:
        raise fail("--quick and --full exclude each other")
    return QUICK if quick else FULL if full else DEFAULT


class Outputs:
    """Where a report goes: its format, a file instead of the standard output, and an HTML file."""

    def __init__(self, format_: Format, file: Path | None, html: Path | None) -> None:
        self.format, self.file, self.html = format_, file, html
        for path in (file, html):
            if path is not None and (path.is_dir() or not path.parent.is_dir()):
                raise fail(f"cannot write {path}: {'it is a folder' if path.is_dir() else 'its folder does not exist'}")

    def write(self, report: Any, title: str, sections: Callable[[], Any] = tuple) -> None:
        """Render and write the report; `sections` makes what the HTML file shows besides it."""
        text = self._as_text(report, title) if self.format is Format.TEXT else _render(report, self.format) + "\n"
        if self.file:
            _write_file(self.file, text)
        else:
            _print_whole(text)
        if self.html:
            from verify.html import render_html

            _write_file(self.html, render_html(report, title, sections()))

    def _as_text(self, report: Any, title: str) -> str:
        from rich.console import Console

        from verify.render import render_text

        console = Console(highlight=False, soft_wrap=True, color_system=None if self.file else "auto")
        on_screen = console.is_terminal and not self.file
        with console.capture() as captured:
            render_text(report, title, console.print, console.width if on_screen else None)
        return captured.get()


def _render(report: Any, format_: Format) -> str:
    if format_ is Format.SARIF:
        from verify.sarif import render_sarif

        return render_sarif(report)
    if format_ is Format.GITHUB:
        from verify.github import render_github

        return render_github(report)
    from verify.render import render_json, render_junit

    return render_json(report) if format_ is Format.JSON else render_junit(report)


def _print_whole(text: str) -> None:
    """Print a report; its exit code stays the verdict's, whoever reads it and in whatever encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:  # `kit verify | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_file(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise fail(f"cannot write {path}: {error.strerror}") from None


def _verify(
    spec: Any, folder: Path, device: Device, require_gpu: bool, limits: dict[str, Any], outputs: Outputs, seen: Any
) -> int:
    from verify.report import Status
    from verify.runner import verify_model
    from verify.watch import acceptance_checks

    if not folder.is_dir():
        raise fail(f"the project folder {folder} does not exist")
    with _Progress(enabled=outputs.format is Format.TEXT and sys.stderr.isatty()) as progress:
        try:
            report = verify_model(
                spec,
                folder=folder,
                device=device.value,
                require_gpu=require_gpu,
                on_rule=progress.show,
                **limits,
            )
        except ValueError as error:
            raise fail(error) from None
    unusable = len(report.checks) == 1 and report.checks[0].status is Status.ERROR
    if not unusable and spec.training is not None:
        report.checks += acceptance_checks(seen, spec.training, spec.select, spec.ignore)
    if unusable:
        typer.echo(f"kit: {report.checks[0].message}", err=True)
    if not unusable or outputs.format is not Format.TEXT:
        outputs.write(report, "kit " + shlex.join(sys.argv[1:]))
    return report.exit_code


@app.command()
def watch(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- CMD...", help="The command that trains, as one would type it.")
    ] = None,
    max_train_batches: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Batches of each training epoch (5).")
    ] = None,
    max_val_batches: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Batches of each evaluation (5).")
    ] = None,
    max_epochs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Epochs; all by default.")] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="S", min=1, help="Seconds for the verdict (120); the script is killed then.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="At most 10 s: fewer batches, no second start.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Up to 5 minutes: more batches, longer probes.")] = False,
    select: Annotated[
        str | None, typer.Option(metavar="CODES", help="Only these codes or families: DAT,TRN403.")
    ] = None,
    ignore: Annotated[str | None, typer.Option(metavar="CODES", help="Not these codes or families.")] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the record; without a command, judge a kept one again.")
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="What goes to the standard output.")] = Format.TEXT,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a report for a browser.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the report there instead.")
    ] = None,
) -> None:
    """Run a training script in time-lapse, unchanged and in a copy, and say which silent bugs it has.

    Exit code 0: none. 1: something failed. 2: something could not be checked.
    """
    from dataclasses import replace

    from verify.rules import check_codes
    from verify.trace.launch import DEFAULT, FULL, QUICK, WatchError

    if quick and full:
        raise fail("--quick and --full exclude each other")
    outputs = Outputs(format_, output, html)
    chosen, left_out = _parse_codes(select) or [], _parse_codes(ignore) or []
    changes: dict[str, Any] = {
        "train_batches": max_train_batches,
        "eval_batches": max_val_batches,
        "max_epochs": max_epochs,
    }
    profile = QUICK if quick else FULL if full else DEFAULT
    profile = profile.within(timeout) if timeout is not None else profile
    cut = replace(profile, **{k: v for k, v in changes.items() if v is not None})
    try:
        check_codes([*chosen, *left_out])
        seen = _watch(command or [], record, cut, outputs)
    except (WatchError, ValueError) as error:
        raise fail(error) from None
    raise typer.Exit(_judge(seen, chosen, left_out, outputs))


def _watch(command: list[str], file: Path | None, cut: Any, outputs: Outputs) -> Any:
    from verify.trace.launch import watch

    if not command and file is not None:
        return _read_record(file)
    if file is not None and (file.is_dir() or not file.resolve().parent.is_dir()):
        raise fail(f"cannot write {file}: {'it is a folder' if file.is_dir() else 'its folder does not exist'}")
    with _Progress(enabled=outputs.format is Format.TEXT and sys.stderr.isatty()) as progress:
        seen = watch(command, cut=cut, on_line=lambda line: progress.show("watching", line[:100]))
    if file is not None:
        seen.save(file)
    return seen


def _read_record(file: Path) -> Any:
    from verify.trace.record import Record

    try:
        return Record.load(file)
    except FileNotFoundError:
        raise fail(f"there is no record {file}; `kit watch --record {file} -- python train.py` makes it") from None
    except (OSError, ValueError) as error:
        raise fail(f"{file} cannot be read as a record: {error}") from None


def _training_spec() -> Any:
    """What verify.yaml in this folder says of the training, if there is one."""
    from verify.spec import SPEC_FILE, SpecError, load_spec

    if not Path(SPEC_FILE).is_file():
        return None
    try:
        return load_spec(Path(SPEC_FILE)).get("training")
    except SpecError as error:
        raise fail(error) from None


def _judge(seen: Any, select: list[str], ignore: list[str], outputs: Outputs) -> int:
    from verify.watch import judge, with_spec

    report = judge(with_spec(seen, _training_spec()), select, ignore)

    def sections() -> Any:
        from verify.curves import run_section

        return [run_section(seen)]

    outputs.write(report, f"kit watch -- {seen.command}", sections)
    return report.exit_code


class _Progress:
    """A spinner on the standard error that names the rule at work."""

    def __init__(self, enabled: bool) -> None:
        self.status: Any = None
        if enabled:
            from rich.console import Console

            self.status = Console(stderr=True).status("starting PyTorch")

    def __enter__(self) -> _Progress:
        if self.status:
            self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.status:
            self.status.stop()

    def show(self, code: str, name: str) -> None:
        """Name the rule at work."""
        if self.status:
            self.status.update(f"{code} {name}")


@app.command()
def rules(
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON list.")] = False,
) -> None:
    """List the rules."""
    from verify.rules import all_rules

    catalogue = list(all_rules().values())
    if as_json:
        import json

        fields = ({"code": r.code, "name": r.name, "severity": r.severity, "title": r.title} for r in catalogue)
        typer.echo(json.dumps(list(fields), indent=2))
        return
    width = max(len(rule.name) for rule in catalogue)
    for rule in catalogue:
        typer.echo(f"{rule.code}  {rule.severity:4}  {rule.name:{width}}  {rule.title}")


@app.command()
def explain(code: Annotated[str, typer.Argument(help="The code of a rule, such as MOD104.")]) -> None:
    """Explain a rule: what it means, why it matters, how it is found, what is no error."""
    from verify.rules import all_rules
    from verify.spec import nearest

    catalogue = all_rules()
    rule = catalogue.get(code.upper())
    if rule is None:
        raise fail(f"no rule has the code {code!r}{nearest(code.upper(), list(catalogue))}; `kit rules` lists them")
    typer.echo(f"{rule.code} {rule.name} ({rule.severity})\n\n{rule.title}.\n\n{rule.page}")


@app.command()
def demo(
    dest: Annotated[Path, typer.Argument(help="Folder for the demo project and its report.")] = Path("kit-demo"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs to train: 12 with the digits, 1 with CIFAR-10.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download CIFAR-10 (170 MB) instead of using the embedded digits.")
    ] = False,
) -> None:
    """Scaffold, verify, train and evaluate a small CNN, and write one HTML report: the whole path, once."""
    from kit.demo import DemoError, run_demo

    try:
        code = run_demo(dest, epochs=epochs, download=download)
    except DemoError as error:
        raise fail(error) from None
    raise typer.Exit(code)


def _key_value(item: str, option: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        raise fail(f"{option} {item!r} must look like key=value")
    return key.strip(), value.strip()


def _parse_kwargs(items: list[str]) -> dict[str, Any]:
    """`depth=12,drop=0.1,widths=[16,32]`: values are YAML, commas within brackets belong to the value."""
    import re

    import yaml

    result = {}
    for item in items:
        for pair in re.split(r",(?![^\[{(]*[\]})])", item):
            key, value = _key_value(pair, "--kwargs")
            try:
                result[key] = yaml.safe_load(value)
            except yaml.YAMLError:
                raise fail(f"--kwargs {key}={value!r}: the value is not valid YAML") from None
    return result


def _parse_size(text: str, option: str) -> list[int]:
    parts = text.lower().replace("x", ",").strip("()[] ").split(",")
    try:
        return [int(part) for part in parts if part.strip()]
    except ValueError:
        raise fail(f"{option} {text!r} must be numbers such as 3,224,224") from None


def _parse_codes(text: str | None) -> list[str] | None:
    return [code.strip().upper() for code in text.split(",") if code.strip()] if text else None


def main() -> None:
    """Entry point of the `kit` command: click's errors in one line, Ctrl-C without a traceback."""
    try:
        code = _run()
    except KeyboardInterrupt:  # it may also come while an exception of typer's is handled
        code = INTERRUPTED
    if code == INTERRUPTED:
        # Python forgets an exit code once an interrupt has gone through an exec or eval, of which an import makes many,
        # and ends by the signal instead. Whatever was to be cleaned up has been.
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _run() -> int:
    try:
        result = app(standalone_mode=False)
    except typer.Exit as error:
        return int(error.exit_code)
    except typer.Abort:
        typer.echo("kit: interrupted", err=True)
        return INTERRUPTED
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        unnamed = "verify" in sys.argv and "unexpected extra" in message
        typer.echo(f"kit: {message} ({'name the model with --model' if unnamed else 'see kit --help'})", err=True)
        return WRONG_USE
    return result if isinstance(result, int) else 0
