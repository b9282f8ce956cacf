"""Options and configuration: what declares them, and where they go in the code of a project."""

from __future__ import annotations

from verify.options.declared import argparse_options, class_options, dict_options
from verify.options.files import file_options
from verify.options.flow import Flow
from verify.options.hydra import hydra_options
from verify.source import project_of
from verify.trace.record import Record


def flow_of(record: Record) -> Flow:
    """Where the options of a run go; worked out once for each record."""
    flow: Flow | None = record.__dict__.get("_flow")
    if flow is None:
        project = project_of(record)
        parsed = argparse_options(project)
        options = [parsed] if parsed else []
        options += [*file_options(record, project), *hydra_options(record, project)]
        options += [*dict_options(project), *class_options(project)]
        flow = Flow(project, options)
        record.__dict__["_flow"] = flow
    return flow
