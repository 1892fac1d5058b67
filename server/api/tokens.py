"""``/tokens``: making, listing and revoking them. A token of one project manages those of that project."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from client_sdk.protocol import MAX_NAME_CHARS
from server.api.access import ProjectAdministrator, ServicesOf
from server.api.answers import NewTokenAnswer, TokenAnswer
from server.api.encoding import json_response
from server.api.errors import REFUSALS
from server.auth.tokens import digest_of, new_token
from server.errors import ApiError
from server.models import Scope
from server.pipeline.packing import is_name

router = APIRouter(tags=["access"], responses=REFUSALS)

TokenId = Annotated[int, Path(ge=1, le=2**63 - 1, description="Id of the token.")]


class NewToken(BaseModel):
    model_config = ConfigDict(extra="forbid")

    scope: Scope = Field(description="What it allows; each scope includes the one before: read, write, admin.")
    project: str | None = Field(
        default=None, min_length=1, max_length=MAX_NAME_CHARS, description="The one project that it opens; null: all."
    )
    label: str = Field(default="", max_length=MAX_NAME_CHARS, description="What it is for.")


@router.get("/tokens", response_model=list[TokenAnswer], summary="Tokens, without their secrets")
async def list_tokens(services: ServicesOf, principal: ProjectAdministrator) -> Response:
    return json_response(await services.tokens.all(principal.project))


@router.post("/tokens", response_model=NewTokenAnswer, status_code=201, summary="Make a token")
async def create_token(services: ServicesOf, principal: ProjectAdministrator, body: NewToken) -> Response:
    """The answer shows the secret for the only time: the database keeps its hash alone."""
    if (body.project is not None and not is_name(body.project)) or "\0" in body.label:
        raise ApiError(400, "invalid_parameter", "project and label: no NUL character")
    if principal.project is not None and body.project != principal.project:
        raise ApiError(403, "forbidden", f"your token makes tokens of the project {principal.project!r} alone")
    token, now = new_token(), services.clock()
    token_id = await services.tokens.create(digest_of(token), body.scope, body.project, body.label, now)
    shown = {"id": token_id, **body.model_dump(), "created_at": now, "last_used_at": None, "revoked_at": None}
    answer = json_response({"token": token, **shown})
    answer.status_code = 201
    return answer


@router.delete("/tokens/{token_id}", status_code=204, summary="Revoke a token")
async def revoke_token(services: ServicesOf, principal: ProjectAdministrator, token_id: TokenId) -> Response:
    """It opens nothing from now on, here at once and on other servers within seconds; its sockets are closed, and the
    logins that it opened end."""
    if not await services.tokens.revoke(token_id, services.clock(), project=principal.project):
        raise ApiError(404, "unknown_token", f"there is no token {token_id} to revoke; GET /api/v1/tokens lists them")
    services.authenticator.forget()
    services.admissions.recheck()
    return Response(status_code=204)
