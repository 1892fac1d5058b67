"""The dashboard: mounted in the server's application, or as an application of its own.

It is imported only when it is asked for: a server without pages needs neither Dash nor Plotly in memory.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI

from server.config import Config
from server.errors import ConfigurationError


def add_dashboard(app: FastAPI, config: Config) -> None:
    from dashboard.app import mount_dashboard
    from dashboard.config import DashboardConfig
    from dashboard.login.cookies import Cookies

    settings = DashboardConfig(api_url=config.api_url, public_url=config.public_url)
    mount_dashboard(app, settings, cookies=Cookies(suffix=f"_{config.port}"))


def make_dashboard(environment: Mapping[str, str], port: int) -> FastAPI:
    """The dashboard alone, beside a server that SPIKEWATCH_URL names. Raises `ConfigurationError`.

    ``port``: which it is served on; two dashboards of one host have cookies of their own.
    """
    from dashboard.app import create_app
    from dashboard.config import DashboardConfig
    from dashboard.login.cookies import Cookies

    try:
        settings = DashboardConfig.from_environment(environment)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    return create_app(settings, cookies=Cookies(suffix=f"_{port}"))
