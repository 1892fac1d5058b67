"""The cookies of a login. Owns their names and attributes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers
from starlette.responses import Response

from dashboard.viewer import Viewer

FORM_SECONDS = 3_600


@dataclass(frozen=True, kw_only=True)
class Cookies:
    """Browsers keep the cookies of all ports of a host together, so that their names tell the port."""

    suffix: str

    @property
    def session(self) -> str:
        """The credential of the login. Scripts never see it."""
        return f"spikewatch_session{self.suffix}"

    @property
    def csrf(self) -> str:
        """`Viewer.csrf`, for Dash to send back in a header."""
        return f"spikewatch_csrf{self.suffix}"

    @property
    def form(self) -> str:
        """What the login form repeats, before anybody is logged in."""
        return f"spikewatch_form{self.suffix}"

    def read(self, headers: Headers) -> dict[str, str]:
        """Those that the browser sent, by full name."""
        try:
            found = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return {}
        return {name: found[name].value for name in (self.session, self.csrf, self.form) if name in found}

    def begin(self, response: Response, viewer: Viewer, *, seconds: int, secure: bool) -> None:
        """The browser is logged in."""
        response.set_cookie(
            self.session, viewer.credential, max_age=seconds, path="/", httponly=True, secure=secure, samesite="lax"
        )
        response.set_cookie(self.csrf, viewer.csrf, max_age=seconds, path="/", secure=secure, samesite="strict")
        response.delete_cookie(self.form, path="/")

    def end(self, response: Response) -> None:
        """The browser is logged in no longer."""
        for name in (self.session, self.csrf):
            response.delete_cookie(name, path="/")

    def offer_form(self, response: Response, value: str, *, secure: bool) -> None:
        response.set_cookie(
            self.form, value, max_age=FORM_SECONDS, path="/", httponly=True, secure=secure, samesite="strict"
        )


def new_form_value() -> str:
    return secrets.token_urlsafe(24)
