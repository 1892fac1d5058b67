"""``/sessions``: logins of browsers, made and asked by the dashboard; and who a credential is."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server.api.access import Identified, ServicesOf
from server.api.answers import IdentityAnswer, LoginAnswer
from server.api.encoding import json_response
from server.api.errors import REFUSALS
from server.auth.tokens import MAX_TOKEN_CHARS, Identity, bearer_token
from server.errors import ApiError

router = APIRouter(tags=["access"], responses=REFUSALS)


class Secret(BaseModel):
    model_config = ConfigDict(extra="forbid")

    secret: str = Field(
        min_length=1, max_length=2 * MAX_TOKEN_CHARS, description="A token, or the password of the dashboard."
    )


@router.post("/sessions", response_model=LoginAnswer, status_code=201, summary="Log in")
async def log_in(services: ServicesOf, request: Request, body: Secret) -> Response:
    """The answer's `session` is a bearer credential that can do what the secret can, and that ends with it. Too many
    wrong secrets are answered with 429 and `Retry-After`."""
    address = request.client.host if request.client is not None else ""
    login = await services.logins.open(body.secret, address)
    answer = json_response({"session": login.credential, **_identity(login.identity)})
    answer.status_code = 201
    return answer


@router.get("/sessions/current", response_model=IdentityAnswer, summary="Who the credential is")
async def current(identity: Identified) -> Response:
    return json_response(_identity(identity))


@router.delete("/sessions/current", status_code=204, summary="Log out")
async def log_out(services: ServicesOf, request: Request, identity: Identified) -> Response:
    credential = bearer_token(request.headers)
    if identity.expires_at is None or credential is None:
        raise ApiError(400, "not_a_login", "this is a token, not a login; DELETE /api/v1/tokens/{id} revokes one")
    await services.logins.close(credential)
    services.admissions.recheck()
    return Response(status_code=204)


def _identity(identity: Identity) -> dict[str, object]:
    principal = identity.principal
    return {
        "scope": principal.scope,
        "project": principal.project,
        "label": principal.label,
        "token_id": identity.token_id,
        "expires_at": identity.expires_at,
    }
