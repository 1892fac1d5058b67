"""The MCP server with its tools. Importing this module imports `mcp`, which takes a second and 20 MB."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, ParamSpec

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import ToolAnnotations
from pydantic import Field

from client_sdk.protocol import MAX_NAME_CHARS, MAX_STEP
from server.agents.facts import Facts
from server.agents.questions import MAX_SCALARS, Questions
from server.errors import UNAVAILABLE, ApiError, CorruptDataError, DatabaseError, RunDeletedError
from server.models import Principal

PRINCIPAL = "spikewatch.principal"
"""Key of the ASGI scope under which the endpoint passes the principal of the token."""
INSTRUCTIONS = """Spikewatch watches trainings of neural networks and predicts loss spikes. All tools only read.
Start with runs_at_risk or list_runs. explain_alert has the evidence of an alert and what to do about it; series_around
and layers_around show the measurements around a step. compare_runs and what_was_tried find out which settings helped.
The stability ratio is the curvature over the limit 2/learning rate: above 1, the loss grows along a direction."""

Parameters = ParamSpec("Parameters")
Tool = Callable[Parameters, Awaitable[Facts]]
Project = Annotated[
    str | None, Field(max_length=MAX_NAME_CHARS, description="Only this project; default: all that the token opens.")
]
RunId = Annotated[str, Field(max_length=128, description="Id of a run, from list_runs or runs_at_risk.")]
Step = Annotated[int | None, Field(ge=0, le=MAX_STEP, description="Step in the middle; default: the run's last.")]
Limit = Annotated[int, Field(ge=1, le=50, description="Maximum number in the answer.")]


def make_session_manager(questions: Questions, version: str) -> StreamableHTTPSessionManager:
    """Return the manager of the HTTP transport. It keeps no sessions, so any of several servers answers a request."""
    server = make_server(questions, version)
    # The library would refuse every host name but localhost, against pages that reach a local server through DNS. Such
    # pages have no token, so the endpoint refuses them.
    open_to_names = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    server.streamable_http_app(stateless_http=True, json_response=True, transport_security=open_to_names)
    return server.session_manager


def make_server(questions: Questions, version: str) -> MCPServer:
    """Return an MCP server with all tools."""
    server = MCPServer(
        "spikewatch",
        title="Spikewatch",
        instructions=INSTRUCTIONS,
        version=version,
        subscriptions=False,
        log_level="WARNING",
    )
    read_only = ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)

    def tool(function: Tool[Parameters]) -> None:
        server.add_tool(_refusing(function), annotations=read_only)

    async def list_runs(
        ctx: Context[Any, Any],
        project: Project = None,
        state: Literal["running", "finished", "crashed", "stale"] | None = None,
        limit: Limit = 20,
    ) -> dict[str, Any]:
        """List runs, newest first, with their state, loss, stage, stability ratio and open alerts."""
        return await questions.runs(principal_of(ctx), project, state, limit)

    async def runs_at_risk(ctx: Context[Any, Any], project: Project = None) -> dict[str, Any]:
        """List the unfinished runs that have open alerts or are near the limit of stability, the most urgent first."""
        return await questions.runs_at_risk(principal_of(ctx), project)

    async def list_alerts(
        ctx: Context[Any, Any],
        run_id: Annotated[str | None, Field(max_length=128, description="Only of this run.")] = None,
        level: Literal["watch", "warning", "critical"] | None = None,
        limit: Limit = 20,
    ) -> dict[str, Any]:
        """List alerts, newest first: predicted spikes, spikes, divergences, bad batches and others."""
        return await questions.alerts(principal_of(ctx), run_id, level, limit)

    async def explain_alert(
        ctx: Context[Any, Any],
        alert_id: Annotated[str, Field(max_length=64, description="Id of an alert, from list_alerts or runs_at_risk.")],
    ) -> dict[str, Any]:
        """Explain an alert: cause, the measurements behind it, layers, what to do, and what happened around it."""
        return await questions.explain_alert(principal_of(ctx), alert_id)

    async def series_around(
        ctx: Context[Any, Any],
        run_id: RunId,
        *,
        step: Step = None,
        before: Annotated[int, Field(ge=0, le=1_000_000, description="Steps before it.")] = 100,
        after: Annotated[int, Field(ge=0, le=1_000_000, description="Steps after it.")] = 50,
        scalars: Annotated[
            list[str] | None,
            Field(max_length=MAX_SCALARS, description="Names; default: loss, learning rate, gradient, curvature."),
        ] = None,
    ) -> dict[str, Any]:
        """Read scalars around a step. Where there are more than 60 steps, a value stands for several of them."""
        return await questions.series_around(
            principal_of(ctx), run_id, step=step, before=before, after=after, names=scalars or ()
        )

    async def layers_around(
        ctx: Context[Any, Any],
        run_id: RunId,
        *,
        step: Step = None,
        statistic: Annotated[str, Field(max_length=MAX_NAME_CHARS, description="Layer statistic.")] = "grad_norm",
        before: Annotated[int, Field(ge=1, le=1_000_000, description="Steps before it to compare with.")] = 100,
    ) -> dict[str, Any]:
        """Find the layers whose statistic has changed most at a step, against the median of the steps before it."""
        return await questions.layers_around(principal_of(ctx), run_id, step=step, statistic=statistic, before=before)

    async def compare_runs(ctx: Context[Any, Any], first_run_id: RunId, second_run_id: RunId) -> dict[str, Any]:
        """Compare two runs: settings that differ, the loss at the same steps, and the alerts and spikes of each."""
        return await questions.compare_runs(principal_of(ctx), first_run_id, second_run_id)

    async def what_was_tried(
        ctx: Context[Any, Any],
        project: Annotated[str, Field(max_length=MAX_NAME_CHARS, description="Name of the project.")],
        limit: Limit = 30,
    ) -> dict[str, Any]:
        """List the runs of a project with the settings in which they differ and how each of them went."""
        return await questions.what_was_tried(principal_of(ctx), project, limit)

    for function in (
        list_runs,
        runs_at_risk,
        list_alerts,
        explain_alert,
        series_around,
        layers_around,
        compare_runs,
        what_was_tried,
    ):
        tool(function)
    return server


def principal_of(ctx: Context[Any, Any]) -> Principal:
    """Return the principal of the token with which a tool is called."""
    request = ctx.request_context.request
    assert request is not None, "tools are called over HTTP alone"
    found: Principal = request.scope[PRINCIPAL]
    return found


def _refusing(function: Tool[Parameters]) -> Tool[Parameters]:
    """Return the tool with refusals as errors that the agent reads."""

    @functools.wraps(function)
    async def called(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Facts:
        try:
            return await function(*args, **kwargs)
        except ApiError as error:
            raise ToolError(error.message) from error
        except DatabaseError as error:
            raise ToolError(UNAVAILABLE) from error
        except (CorruptDataError, RunDeletedError) as error:
            raise ToolError(str(error)) from error

    return called
