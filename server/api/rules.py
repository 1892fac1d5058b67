"""``/rules``: listing and changing alert rules, and backtests of a rule on the history of runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from client_sdk import answers
from client_sdk.vocabulary import ChangeBy, Condition, Direction, Reduce
from server.api.access import Administrator, Reader, Services, ServicesOf, visible_run
from server.api.presence import while_present
from server.api.refusals import refusals
from server.api.router import AnswerRouter
from server.errors import ApiError, RuleFieldError
from server.models import AlertLevel, RunState
from server.pipeline.rule_backtest import BacktestResult, Firing, Outline
from server.rule import MAX_RULES, MAX_TEXT, Rule, RuleSet

router = AnswerRouter(tags=["rules"])

BACKTEST_SECONDS = 20.0  # time limit of one call
MAX_BACKTEST_RUNS = 20

RuleId = Annotated[str, Path(max_length=64, description="Id of the rule.")]
Text = Annotated[str | None, Field(max_length=MAX_TEXT)]


class RuleBody(BaseModel):
    """An alert rule; docs/how-to/write-rules.md explains its fields and which of them belong together."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    id: str = Field(max_length=64, description="Lower-case letters, digits and hyphens.")
    name: str = Field(max_length=120)
    condition: Condition
    value: float = Field(description="Threshold, factor, amount, deviations or minutes, depending on the condition.")
    enabled: bool = True
    level: AlertLevel = AlertLevel.WARNING
    project: Text = None
    tag: Text = None
    run_name: Text = Field(None, description="Pattern with * and ?.")
    scalar: Text = None
    statistic: Text = None
    layers: str = Field("*", max_length=MAX_TEXT, description="Pattern with * and ?.")
    reduce: Reduce = Reduce.MAX
    change_by: ChangeBy = ChangeBy.FACTOR
    direction: Direction = Direction.UP
    window: int = 100
    for_steps: int = 1
    cooldown_minutes: float = 30.0

    def rule(self, path: str) -> Rule:
        """Return the rule. Raises `ApiError` with the path of the field: ``path`` and the name of the field."""
        try:
            return Rule(**self.model_dump())
        except RuleFieldError as error:
            raise _invalid_rule(f"{path}{error.field}", error.reason) from error


class RulesBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rules: list[RuleBody] = Field(max_length=MAX_RULES)


class BacktestBody(BaseModel):
    """A rule, saved or not, and a run or a project to run it on."""

    model_config = ConfigDict(extra="forbid")

    rule: RuleBody
    run: str | None = Field(None, max_length=128, description="Id of a run.")
    project: str | None = Field(None, max_length=MAX_TEXT, description="Project whose newest matching runs are used.")
    runs: int = Field(5, ge=1, le=MAX_BACKTEST_RUNS, description="Maximum number of runs of the project.")


@router.get("/rules", summary="All rules")
async def list_rules(services: ServicesOf, principal: Reader) -> answers.Rules:
    """A token of one project lists the rules of that project and those of all projects."""
    found = await services.rules.all()
    return _rules(rule for rule in found.rules if rule.project is None or principal.may_see(rule.project))


@router.put("/rules", summary="Replace all rules")
async def replace_rules(services: ServicesOf, principal: Administrator, body: RulesBody) -> answers.Rules:
    wanted = [item.rule(f"rules.{number}.") for number, item in enumerate(body.rules)]
    for number, rule in enumerate(wanted):
        if any(other.id == rule.id for other in wanted[:number]):
            raise _invalid_rule(f"rules.{number}.id", f"another rule has the id {rule.id!r} too")
    known = await services.rules.all()
    found = await _store(services, wanted, removed=[rule.id for rule in known.rules])
    return _rules(found.rules)


@router.post(
    "/rules/test", responses=refusals(404, 410), summary="Backtest a rule: when would it have opened an alert?"
)
async def backtest(
    services: ServicesOf, principal: Administrator, request: Request, body: BacktestBody
) -> answers.Backtest:
    """Reads every step of the runs, for at most 20 seconds. A client that disconnects ends it."""
    rule = body.rule.rule("rule.")
    run_ids = await _runs_to_test(services, principal, rule, body)
    runs = await while_present(request, _test(services, rule, run_ids))
    return answers.Backtest(fired=sum(run.fired for run in runs), runs=tuple(runs))


async def _test(services: Services, rule: Rule, run_ids: Sequence[str]) -> list[answers.RunBacktest]:
    found: list[answers.RunBacktest] = []
    async with services.backtest_slots:
        until = time.monotonic() + BACKTEST_SECONDS
        for run_id in run_ids:
            run = await services.fleet.summary(run_id)
            if run is None or (found and time.monotonic() > until):
                continue
            result = await services.backtest.of_run(
                rule,
                run_id,
                goes_on=run.state in {RunState.RUNNING, RunState.STALE},
                now=services.clock(),
                is_over=lambda: time.monotonic() > until,
            )
            found.append(await asyncio.to_thread(_run_backtest, rule, run, result))
    return found


@router.put("/rules/{rule_id}", summary="Create or change a rule")
async def put_rule(services: ServicesOf, principal: Administrator, rule_id: RuleId, body: RuleBody) -> answers.Rule:
    rule = body.rule("")
    if rule.id != rule_id:
        raise _invalid_rule("id", f"it is {rule.id!r} in the body and {rule_id!r} in the address")
    known = await services.rules.all()
    if len(known.rules) >= MAX_RULES and all(other.id != rule_id for other in known.rules):
        raise ApiError(400, "too_many_rules", f"there are {MAX_RULES} rules, the maximum; delete one first")
    await _store(services, [rule])
    return _rule(rule)


@router.delete("/rules/{rule_id}", responses=refusals(404), summary="Delete a rule")
async def delete_rule(services: ServicesOf, principal: Administrator, rule_id: RuleId) -> answers.Rule:
    """The answer is the deleted rule. Its open alerts are resolved."""
    known = await services.rules.all()
    rule = next((rule for rule in known.rules if rule.id == rule_id), None)
    if rule is None:
        raise ApiError(404, "unknown_rule", f"the rule {rule_id!r} does not exist; GET /api/v1/rules lists the rules")
    await _store(services, [], removed=[rule_id])
    return _rule(rule)


async def _store(services: Services, wanted: Sequence[Rule], *, removed: Sequence[str] = ()) -> RuleSet:
    found = await services.rules.replace(wanted, services.clock(), removed=removed)
    await services.pipeline.run_states.refresh_rules()
    return found


async def _runs_to_test(services: Services, principal: Administrator, rule: Rule, body: BacktestBody) -> list[str]:
    if (body.run is None) == (body.project is None):
        message = "run: give either a run or a project to test the rule on"
        raise ApiError(400, "invalid_parameter", message, field="run")
    if body.run is not None:
        await visible_run(services, principal, body.run)
        return [body.run]
    page = await services.fleet.page(projects=None if body.project is None else [body.project], limit=200)
    chosen = [run.id for run in page.runs if rule.applies_to(run.project, run.name, run.tags)]
    return chosen[: body.runs]


def _invalid_rule(field: str, reason: str) -> ApiError:
    return ApiError(400, "invalid_rule", f"{field}: {reason}", field=field)


def _rule(rule: Rule) -> answers.Rule:
    return msgspec.convert(rule, answers.Rule, from_attributes=True)


def _rules(found: Iterable[Rule]) -> answers.Rules:
    return answers.Rules(rules=tuple(_rule(rule) for rule in found))


def _run_backtest(rule: Rule, run: answers.RunSummary, result: BacktestResult) -> answers.RunBacktest:
    return answers.RunBacktest(
        run_id=run.id,
        name=run.name,
        project=run.project,
        chosen=rule.applies_to(run.project, run.name, run.tags),
        fired=result.fired,
        firings=_firings(result.firings),
        swallowed=_firings(result.swallowed),
        records=result.records,
        values=result.values,
        last_step=result.last_step,
        complete=result.complete,
        series=_outline(result.outline),
    )


def _firings(found: Sequence[Firing]) -> tuple[answers.Firing, ...]:
    return tuple(msgspec.convert(firing, answers.Firing, from_attributes=True) for firing in found)


def _outline(outline: Outline) -> answers.Outline:
    numbers = sorted(outline.buckets)
    return answers.Outline(
        bucket_steps=outline.width,
        step=tuple(number * outline.width for number in numbers),
        min=tuple(outline.buckets[number][0] for number in numbers),
        max=tuple(outline.buckets[number][1] for number in numbers),
    )
