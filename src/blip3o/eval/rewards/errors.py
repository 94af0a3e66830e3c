"""Errors as answers: {"error": {"message", "param", "code"}}."""

from collections.abc import Sequence

from pydantic_core import ErrorDetails
from starlette.responses import JSONResponse

from blip3o.core.errors import HttpError

_LONGEST_NAME = 100


class ApiError(HttpError):
    """An error to send as {"error": {"message", "param", "code"}}."""

    def response(self) -> JSONResponse:
        """Returns the answer."""
        # A request may hold unpaired surrogates, which UTF-8 cannot write.
        message = self.message.encode("ascii", "backslashreplace").decode()
        param = None if self.param is None else self.param.encode("ascii", "replace").decode()
        error = {"message": message, "param": param, "code": self.code}
        return JSONResponse({"error": error}, self.status, self.headers)


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Returns the 422 error for an invalid request."""
    return ApiError(422, message, param=param, code=code)


def busy(message: str, wait_s: int = 1) -> ApiError:
    """Returns the 429 error for a request that exceeds a limit of the server for now."""
    headers = {"Retry-After": str(wait_s)}
    return ApiError(429, f"{message}; try again later", code="queue_full", headers=headers)


def unavailable(message: str, wait_s: int = 5) -> ApiError:
    """Returns the 503 error for a request that another or a later server can answer."""
    return ApiError(503, message, code="unavailable", headers={"Retry-After": str(wait_s)})


def too_large(message: str, param: str | None = None) -> ApiError:
    """Returns the 413 error for a request over a limit."""
    return ApiError(413, message, param=param, code="too_large", headers={"Connection": "close"})


def from_validation(errors: Sequence[ErrorDetails], place: str = "") -> ApiError:
    """Returns the error to send for pydantic's list of errors: unknown fields first.

    Args:
        errors: the errors.
        place: field in which they are.
    """
    first = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    names = [place] if place else []
    param = ".".join([*names, *(str(part)[:_LONGEST_NAME] for part in first["loc"])])
    if first["type"] == "extra_forbidden":
        return invalid(f"unknown field {param!r}; leave it out", param, "unknown_field")
    message = first["msg"].removeprefix("Value error, ")
    return invalid(f"{param or 'the body'}: {message}", param or None)
