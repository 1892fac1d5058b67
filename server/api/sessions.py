"""``/sessions``: logins of browsers, which the dashboard opens, and the rights of a credential."""

from __future__ import annotations

from fastapi import Request
from msgspec import UNSET, UnsetType
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from client_sdk import answers
from server.api.access import Identified, ServicesOf
from server.api.refusals import refusals
from server.api.router import AnswerRouter
from server.auth.tokens import MAX_TOKEN_CHARS, Identity, bearer_token
from server.errors import ApiError

router = AnswerRouter(tags=["access"])


class LoginBody(BaseModel):
    """Body of the request that logs in."""

    model_config = ConfigDict(extra="forbid")

    secret: str = Field(
        min_length=1, max_length=2 * MAX_TOKEN_CHARS, description="A token, or the password of the dashboard."
    )


@router.post("/sessions", status_code=201, responses=refusals(401, 429), summary="Log in")
async def log_in(services: ServicesOf, request: Request, body: LoginBody) -> answers.Identity:
    """The `session` of the answer is a bearer credential with the rights of the secret. It ends with the secret. Too
    many wrong secrets are refused with 429 and `Retry-After`."""
    address = request.client.host if request.client is not None else ""
    login = await services.logins.open(body.secret, address)
    return _identity(login.identity, session=login.credential)


@router.get("/sessions/current", summary="Rights of the credential")
async def current(identity: Identified) -> answers.Identity:
    return _identity(identity)


@router.delete("/sessions/current", status_code=204, responses=refusals(400), summary="Log out")
async def log_out(services: ServicesOf, request: Request, identity: Identified) -> Response:
    credential = bearer_token(request.headers)
    if identity.expires_at is None or credential is None:
        raise ApiError(
            400, "not_a_login", "the credential is a token, not a login; DELETE /api/v1/tokens/{id} revokes a token"
        )
    await services.logins.close(credential)
    services.admissions.recheck()
    return Response(status_code=204)


def _identity(identity: Identity, session: str | UnsetType = UNSET) -> answers.Identity:
    principal = identity.principal
    return answers.Identity(
        session=session,
        scope=principal.scope,
        project=principal.project,
        label=principal.label,
        token_id=identity.token_id,
        expires_at=identity.expires_at,
    )
