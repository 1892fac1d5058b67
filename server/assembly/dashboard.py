"""Builds the dashboard, either mounted in the application of a server or as an application of its own.

The dashboard is imported on demand, so that a server without pages has neither Dash nor Plotly in memory.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI
from starlette.routing import Mount

from server.api.methods import OtherMethods
from server.config import Config
from server.errors import ConfigurationError


def add_dashboard(app: FastAPI, config: Config) -> None:
    """Mount the dashboard at / of a server's application."""
    from dashboard.app import mount_dashboard
    from dashboard.config import DashboardConfig
    from dashboard.login.cookies import Cookies

    settings = DashboardConfig(api_url=config.api_url, public_url=config.public_url)
    mount_dashboard(app, settings, cookies=Cookies(suffix=f"_{config.port}"))


def make_dashboard(environment: Mapping[str, str], port: int) -> FastAPI:
    """Return the dashboard alone, for the server that SPIKEWATCH_URL names. Raises `ConfigurationError`.

    The names of its cookies contain ``port``, so that two dashboards on one host do not share them.
    """
    from dashboard.app import create_app
    from dashboard.config import DashboardConfig
    from dashboard.login.cookies import Cookies

    try:
        settings = DashboardConfig.from_environment(environment)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    app = create_app(settings, cookies=Cookies(suffix=f"_{port}"))
    own = [route for route in app.router.routes if not isinstance(route, Mount)]
    app.router.routes.insert(len(own), OtherMethods(app.router))
    return app
