"""Form actions: a submitted form or a pressed button, and the dispatcher that runs the handler of its page.

A handler calls the API and returns what the page shows next. Errors are shown at the field that they concern, and the
form keeps what was typed.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dashboard import ids
from dashboard.client import ApiClient, ApiError, ApiRefusedError
from dashboard.forms.fields import FieldError

Properties = dict[str, dict[str, Any]]
"""New properties of components, keyed by component id and property name."""


@dataclass(frozen=True, kw_only=True)
class FormAction:
    """A submitted form or a pressed button."""

    verb: str
    """Name of the action, such as "save-rule"."""
    subject: str
    """Id of the object that the action concerns; empty for a new object."""
    form: str
    """Name of the submitted form; empty for a button outside of forms."""
    fields: Mapping[str, str]
    """Text of each field, keyed by field name."""


@dataclass(frozen=True, kw_only=True)
class ActionContext:
    """Everything that a handler needs in addition to the action."""

    client: ApiClient
    """Client with the rights of the viewer."""
    now: float
    """Unix time at which the action arrived."""


Handler = Callable[[FormAction, ActionContext], Awaitable[Properties]]
"""Function that performs an action. Raises `FieldError` or `ApiError`."""


def parse_form_action(data: Any) -> FormAction | None:
    """Return the action that a browser sent, or None if the data is not an action. Accepts any data."""
    if not isinstance(data, Mapping) or not isinstance(data.get("verb"), str):
        return None
    fields = data.get("fields")
    texts = fields if isinstance(fields, Mapping) else {}
    return FormAction(
        verb=data["verb"],
        subject=data["subject"] if isinstance(data.get("subject"), str) else "",
        form=data["form"] if isinstance(data.get("form"), str) else "",
        fields={str(name): value for name, value in texts.items() if isinstance(value, str)},
    )


class FormActions:
    """Dispatcher of form actions. Holds no state of a viewer."""

    def __init__(self, handlers: Mapping[str, Handler], clock: Callable[[], float] = time.time) -> None:
        """``handlers``: keyed by the verb that each performs."""
        self._handlers = handlers
        self._clock = clock

    async def perform(self, action: FormAction, client: ApiClient) -> Properties:
        """Run the handler of an action and return what the page shows next, errors included.

        Returns no properties if no handler performs the verb.
        """
        handler = self._handlers.get(action.verb)
        if handler is None:
            return {}
        try:
            shown = await handler(action, ActionContext(client=client, now=self._clock()))
        except FieldError as error:
            return form_result(action, errors={error.field: error.reason})
        except ApiError as error:
            if not action.form:
                return {ids.NOTICE: {"children": f"The action failed: {error}"}}
            return form_result(action, errors=_field_errors(error, action))
        return {ids.NOTICE: {"children": ""}, **shown}


def form_result(action: FormAction, *, message: str = "", errors: Mapping[str, str] | None = None) -> Properties:
    """Return the result that forms.js shows in the form of an action.

    ``message`` appears next to the buttons. ``errors``: messages keyed by field name, or by "" for the whole form.
    """
    result = {
        "form": action.form,
        "errors": dict(errors or {}),
        "message": message,
        "number": uuid.uuid4().hex,  # a store that is set to an equal value triggers no callback
    }
    return {ids.FORM_RESULT: {"data": result}}


def _field_errors(error: ApiError, action: FormAction) -> dict[str, str]:
    """Return the message of a refusal, keyed by its field if the form has that field and by "" otherwise."""
    if not isinstance(error, ApiRefusedError):
        return {"": str(error)}
    path = error.field or ""
    name = path.rpartition(".")[2]
    if name and name in action.fields:
        return {name: error.message.removeprefix(f"{path}: ")}
    return {"": error.message}
