"""``/tokens``: creating, listing and revoking tokens. A token of one project manages the tokens of that project."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from client_sdk import answers
from client_sdk.protocol import MAX_NAME_CHARS
from server.api.access import ProjectAdministrator, ServicesOf
from server.api.refusals import refusals
from server.api.router import AnswerRouter
from server.auth.tokens import digest_of, new_token
from server.errors import ApiError
from server.models import Scope
from server.pipeline.packing import is_name

router = AnswerRouter(tags=["access"])

TokenId = Annotated[int, Path(ge=1, le=2**63 - 1, description="Id of the token.")]


class TokenBody(BaseModel):
    """Body of the request that creates a token."""

    model_config = ConfigDict(extra="forbid")

    scope: Scope = Field(description="Rights of the token; each scope includes those before it.")
    project: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_NAME_CHARS,
        description="The one project it opens; null: all.",
    )
    label: str = Field(default="", max_length=MAX_NAME_CHARS, description="Purpose of the token.")


@router.get("/tokens", summary="Tokens, without their secrets")
async def list_tokens(services: ServicesOf, principal: ProjectAdministrator) -> list[answers.Token]:
    return await services.tokens.all(principal.project)


@router.post("/tokens", status_code=201, summary="Create a token")
async def create_token(services: ServicesOf, principal: ProjectAdministrator, body: TokenBody) -> answers.Token:
    """Only this answer has the secret: the database keeps a hash of it."""
    if body.project is not None and not is_name(body.project):
        raise _invalid("project", "no NUL character")
    if "\0" in body.label:
        raise _invalid("label", "no NUL character")
    if principal.project is not None and body.project != principal.project:
        message = f"your token creates tokens of the project {principal.project!r} alone"
        raise ApiError(403, "forbidden", message, field="project")
    secret, now = new_token(), services.clock()
    token_id = await services.tokens.create(digest_of(secret), body.scope, body.project, body.label, now)
    return answers.Token(
        token=secret, id=token_id, scope=body.scope, project=body.project, label=body.label, created_at=now
    )


@router.delete("/tokens/{token_id}", status_code=204, responses=refusals(404), summary="Revoke a token")
async def revoke_token(services: ServicesOf, principal: ProjectAdministrator, token_id: TokenId) -> Response:
    """The token is refused from now on: on this server at once, and on others within seconds. Its sockets are closed,
    and its logins end."""
    if not await services.tokens.revoke(token_id, services.clock(), project=principal.project):
        raise ApiError(
            404, "unknown_token", f"there is no token {token_id} to revoke; GET /api/v1/tokens lists the tokens"
        )
    services.authenticator.forget()
    services.admissions.recheck()
    return Response(status_code=204)


def _invalid(field: str, reason: str) -> ApiError:
    return ApiError(400, "invalid_parameter", f"{field}: {reason}", field=field)
