"""The cookies of a login: their names and attributes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers
from starlette.responses import Response

from dashboard.viewer import Viewer

FORM_SECONDS = 3_600  # lifetime of the login form


@dataclass(frozen=True, kw_only=True)
class Cookies:
    """Names and attributes of the cookies of one dashboard."""

    suffix: str
    """End of every name, such as the port, because browsers share cookies between all ports of a host."""

    @property
    def session(self) -> str:
        """Name of the cookie with the credential of the login, which scripts cannot read."""
        return f"spikewatch_session{self.suffix}"

    @property
    def csrf(self) -> str:
        """Name of the cookie with `Viewer.csrf`, which Dash sends back in a header."""
        return f"spikewatch_csrf{self.suffix}"

    @property
    def form(self) -> str:
        """Name of the cookie with the value that the login form repeats."""
        return f"spikewatch_form{self.suffix}"

    def read(self, headers: Headers) -> dict[str, str]:
        """Return the cookies that the browser sent, keyed by full name."""
        try:
            found = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return {}
        return {name: found[name].value for name in (self.session, self.csrf, self.form) if name in found}

    def begin(self, response: Response, viewer: Viewer, *, seconds: int, secure: bool) -> None:
        """Log the browser in for the given time."""
        response.set_cookie(
            self.session, viewer.credential, max_age=seconds, path="/", httponly=True, secure=secure, samesite="lax"
        )
        response.set_cookie(self.csrf, viewer.csrf, max_age=seconds, path="/", secure=secure, samesite="strict")
        response.delete_cookie(self.form, path="/")

    def end(self, response: Response) -> None:
        """Log the browser out."""
        for name in (self.session, self.csrf):
            response.delete_cookie(name, path="/")

    def offer_form(self, response: Response, value: str, *, secure: bool) -> None:
        """Set the value that the login form must repeat."""
        response.set_cookie(
            self.form, value, max_age=FORM_SECONDS, path="/", httponly=True, secure=secure, samesite="strict"
        )


def new_form_value() -> str:
    """Return a new random value for the login form."""
    return secrets.token_urlsafe(24)
