"""The login page. It loads no other file and shows no data of the dashboard."""

from __future__ import annotations

import html

from starlette.responses import HTMLResponse, Response

from dashboard.login.headers import COMMON

POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"


def login_page(problem: str | None, *, csrf: str, target: str = "/", status: int = 200) -> Response:
    """Return the login page.

    ``problem``: message of a failed login. ``csrf``: value that the form repeats. ``target``: path after the login.
    """
    note = f'<p role="alert">{html.escape(problem)}</p>' if problem is not None else ""
    page = _LOGIN_PAGE
    for mark, words in (("note", note), ("csrf", _hidden("csrf", csrf)), ("target", _hidden("target", target))):
        page = page.replace(f"<!-- {mark} -->", words)
    # Under the referrer policy "no-referrer", browsers would send the form with the origin "null".
    headers = {**COMMON, "Cache-Control": "no-store", "Content-Security-Policy": POLICY}
    return HTMLResponse(page, status_code=status, headers=headers)


def _hidden(name: str, value: str) -> str:
    return f'<input type="hidden" name="{name}" value="{html.escape(value)}">'


_LOGIN_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Spikewatch · log in</title>
<style>
:root{color-scheme:light dark;--ground:#f6f7f9;--card:#fff;--ink:#1a1f2b;--soft:#5a6477;--line:#d9dee7;--accent:#2f6fde;
  --on-accent:#fff;--wrong:#b93030}
@media(prefers-color-scheme:dark){:root{--ground:#0f131a;--card:#171c26;--ink:#e7ebf3;--soft:#98a3b8;--line:#2a3242;--accent:#6ea0ff;
  --on-accent:#0f131a;--wrong:#ff8a7a}}
body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--ground);color:var(--ink);
  font:15px/1.5 system-ui,sans-serif}
main{width:min(26rem,calc(100vw - 2rem));box-sizing:border-box;background:var(--card);border:1px solid var(--line);
  border-radius:12px;padding:1.75rem}
h1{margin:0 0 .5rem;font-size:1.25rem}p{margin:0 0 1rem;color:var(--soft)}p[role=alert]{color:var(--wrong)}
code{font-size:.9em}label{display:block;margin-bottom:.35rem}
input,button{width:100%;box-sizing:border-box;padding:.6rem .75rem;border-radius:8px;border:1px solid var(--line);
  font:inherit;background:transparent;color:inherit}
button{margin-top:.9rem;background:var(--accent);border-color:var(--accent);color:var(--on-accent);font-weight:600;cursor:pointer}
</style></head><body><main><h1>Spikewatch</h1>
<p>Open the address that <code>spikewatch up</code> printed, or enter a token, or the password of this dashboard.</p>
<!-- note -->
<form method="post" action="/login"><!-- csrf --><!-- target --><label for="secret">Token or password</label>
<input id="secret" name="secret" type="password" autocomplete="current-password" required autofocus>
<button type="submit">Log in</button></form></main></body></html>
"""
