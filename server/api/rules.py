"""``/rules``: reading and changing them, and trying one against what runs have logged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from server.api.access import Administrator, Reader, Services, ServicesOf, visible_run
from server.api.answers import RehearsalsAnswer, RuleAnswer, RulesAnswer
from server.api.encoding import json_response
from server.api.errors import REFUSALS
from server.api.presence import while_present
from server.errors import ApiError, RuleFieldError
from server.models import AlertLevel, RunState
from server.pipeline.rule_backtest import BacktestResult, Outline
from server.rule import MAX_RULES, MAX_TEXT, ChangeBy, Condition, Direction, Reduce, Rule, RuleSet

router = APIRouter(tags=["rules"], responses=REFUSALS)

REHEARSAL_SECONDS = 20.0  # that one call may take
MAX_REHEARSED_RUNS = 20

RuleId = Annotated[str, Path(max_length=64, description="Id of the rule.")]
Text = Annotated[str | None, Field(max_length=MAX_TEXT)]


class RuleBody(BaseModel):
    """A rule; docs/how-to/write-rules.md says what its fields mean, and which belong together."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    id: str = Field(max_length=64, description="Lower-case letters, digits and hyphens.")
    name: str = Field(max_length=120)
    condition: Condition
    value: float = Field(description="Threshold, factor, amount, deviations or minutes, as the condition has it.")
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

    def rule(self, place: str) -> Rule:
        """Raises `ApiError`, which names the field after ``place``."""
        try:
            return Rule(**self.model_dump())
        except RuleFieldError as error:
            raise ApiError(400, "invalid_rule", f"{place}{error.field}: {error.reason}") from error


class RulesBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rules: list[RuleBody] = Field(max_length=MAX_RULES)


class RehearsalBody(BaseModel):
    """A rule, saved or not, and a run or a project to try it on."""

    model_config = ConfigDict(extra="forbid")

    rule: RuleBody
    run: str | None = Field(None, max_length=128, description="Id of a run.")
    project: str | None = Field(None, max_length=MAX_TEXT, description="Its newest runs that the rule is for.")
    runs: int = Field(5, ge=1, le=MAX_REHEARSED_RUNS, description="How many of them.")


@router.get("/rules", response_model=RulesAnswer, summary="All rules")
async def list_rules(services: ServicesOf, principal: Reader) -> Response:
    """A token of one project is shown the rules of that project and those of all projects."""
    found = await services.rules.all()
    shown = [rule for rule in found.rules if rule.project is None or principal.may_see(rule.project)]
    return json_response({"rules": [rule.to_json() for rule in shown]})


@router.put("/rules", response_model=RulesAnswer, summary="Replace all rules")
async def replace_rules(services: ServicesOf, principal: Administrator, body: RulesBody) -> Response:
    wanted = [item.rule(f"rules.{number}.") for number, item in enumerate(body.rules)]
    for number, rule in enumerate(wanted):
        if any(other.id == rule.id for other in wanted[:number]):
            raise ApiError(400, "invalid_rule", f"rules.{number}.id: {rule.id!r} stands there twice")
    known = await services.rules.all()
    found = await _store(services, wanted, removed=[rule.id for rule in known.rules])
    return json_response({"rules": [rule.to_json() for rule in found.rules]})


@router.post("/rules/test", response_model=RehearsalsAnswer, summary="When a rule would have told somebody")
async def rehearse(services: ServicesOf, principal: Administrator, request: Request, body: RehearsalBody) -> Response:
    """Reads every step of the runs, for at most 20 seconds; a caller who leaves ends it."""
    rule = body.rule.rule("rule.")
    run_ids = await _runs_to_try(services, principal, rule, body)
    tried = await while_present(request, _try(services, rule, run_ids))
    return json_response({"fired": sum(run["fired"] for run in tried), "runs": tried})


async def _try(services: Services, rule: Rule, run_ids: Sequence[str]) -> list[dict[str, Any]]:
    tried: list[dict[str, Any]] = []
    async with services.rehearsing:
        until = time.monotonic() + REHEARSAL_SECONDS
        for run_id in run_ids:
            summary = await services.fleet.summary(run_id)
            if summary is None or (tried and time.monotonic() > until):
                continue
            found = await services.rehearsal.of_run(
                rule,
                run_id,
                goes_on=summary["state"] in {RunState.RUNNING, RunState.STALE},
                now=services.clock(),
                is_over=lambda: time.monotonic() > until,
            )
            chosen = rule.applies_to(summary["project"], summary["name"], summary["tags"])
            tried.append(await asyncio.to_thread(_told, summary, found, chosen))
    return tried


@router.put("/rules/{rule_id}", response_model=RuleAnswer, summary="Make a rule, or change it")
async def put_rule(services: ServicesOf, principal: Administrator, rule_id: RuleId, body: RuleBody) -> Response:
    rule = body.rule("")
    if rule.id != rule_id:
        raise ApiError(400, "invalid_rule", f"id: it is {rule.id!r} here and {rule_id!r} in the address")
    known = await services.rules.all()
    if len(known.rules) >= MAX_RULES and all(other.id != rule_id for other in known.rules):
        raise ApiError(400, "too_many_rules", f"{MAX_RULES} rules are the most; delete one first")
    await _store(services, [rule])
    return json_response(rule.to_json())


@router.delete("/rules/{rule_id}", response_model=RuleAnswer, summary="Delete a rule")
async def delete_rule(services: ServicesOf, principal: Administrator, rule_id: RuleId) -> Response:
    """Answers with the rule as it was. Its open alerts are resolved."""
    known = await services.rules.all()
    rule = next((rule for rule in known.rules if rule.id == rule_id), None)
    if rule is None:
        raise ApiError(404, "unknown_rule", f"there is no rule {rule_id!r}; GET /api/v1/rules lists them")
    await _store(services, [], removed=[rule_id])
    return json_response(rule.to_json())


async def _store(services: Services, wanted: Sequence[Rule], *, removed: Sequence[str] = ()) -> RuleSet:
    found = await services.rules.replace(wanted, services.clock(), removed=removed)
    await services.pipeline.run_states.refresh_rules()
    return found


async def _runs_to_try(services: Services, principal: Administrator, rule: Rule, body: RehearsalBody) -> list[str]:
    if (body.run is None) == (body.project is None):
        raise ApiError(400, "invalid_parameter", "run: give a run or a project to try the rule on, one of them")
    if body.run is not None:
        await visible_run(services, principal, body.run)
        return [body.run]
    page = await services.fleet.page(project=body.project, state=None, limit=200, cursor=None)
    chosen = [run["id"] for run in page.runs if rule.applies_to(run["project"], run["name"], run["tags"])]
    return chosen[: body.runs]


def _told(run: dict[str, Any], found: BacktestResult, chosen: bool) -> dict[str, Any]:
    return {
        "run_id": run["id"],
        "name": run["name"],
        "project": run["project"],
        "chosen": chosen,
        "fired": found.fired,
        "firings": [
            {
                "step": firing.step,
                "until_step": firing.until_step,
                "time": firing.time,
                "value": firing.value,
                "title": firing.title,
                "message": firing.message,
                "layers": firing.layers,
            }
            for firing in found.firings
        ],
        "records": found.records,
        "values": found.values,
        "last_step": found.last_step,
        "complete": found.complete,
        "series": _series(found.outline),
    }


def _series(outline: Outline) -> dict[str, Any]:
    places = sorted(outline.buckets)
    return {
        "bucket_steps": outline.width,
        "step": [place * outline.width for place in places],
        "min": [outline.buckets[place][0] for place in places],
        "max": [outline.buckets[place][1] for place in places],
    }
