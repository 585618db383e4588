"""What a request is refused with: one error inside, one shape for each dialect outside.

A message names fields, limits and numbers; never the text of a query or document, a key, or a path of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Shape = Literal["object", "tei"]

_TEI_TYPES = {
    "invalid_request_error": "Validation",
    "empty": "Empty",
    "overloaded": "Overloaded",
    "not_ready": "Unhealthy",
    "internal_error": "Backend",
    "model_not_supported": "Backend",
    "timeout": "Overloaded",
}


class ApiError(Exception):
    """A request that is not answered with a result.

    Args:
        status: of the object dialect.
        kind: the contract's word for what is wrong.
        message: in words.
        param: the field at fault.
        headers: sent besides.
        tei_status: in TEI's dialect, where that differs.
        reason: counted as a refusal of this name.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        tei_status: int | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param
        self.headers = dict(headers or {})
        self.tei_status = status if tei_status is None else tei_status
        self.reason = reason

    def status_in(self, shape: Shape) -> int:
        """The status in a dialect."""
        return self.tei_status if shape == "tei" else self.status

    def body(self, shape: Shape, request_id: str) -> dict[str, Any]:
        """The reply's JSON object.

        >>> bad_field("top_n", "top_n is -1, at least 0 is needed").body("tei", "r1")
        {'error': 'top_n is -1, at least 0 is needed', 'error_type': 'Validation'}
        """
        if shape == "tei":
            return {"error": self.message, "error_type": _TEI_TYPES.get(self.kind, "Validation")}
        kind = "invalid_request_error" if self.kind == "empty" else self.kind
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        return {"id": request_id, "message": self.message, "detail": self.message, "error": error}


def bad_field(param: str, message: str) -> ApiError:
    """400, or 422 in TEI's dialect: a field has a wrong type or value."""
    return ApiError(400, "invalid_request_error", message, param=param, tei_status=422, reason="invalid")


def bad_request(message: str) -> ApiError:
    """400 in any dialect."""
    return ApiError(400, "invalid_request_error", message, reason="invalid")


def nothing_given(param: str) -> ApiError:
    """400 in any dialect: there is nothing to work on."""
    return ApiError(400, "empty", f"{param} must not be empty", param=param, reason="invalid")


def too_large(limit: int) -> ApiError:
    """413."""
    return ApiError(413, "payload_too_large", f"the body is larger than {limit:,} bytes", reason="too_large")


def overloaded(message: str, retry_after: int) -> ApiError:
    """429 with how long to wait."""
    return ApiError(429, "overloaded", message, headers={"Retry-After": str(retry_after)}, reason="overloaded")


def timed_out(message: str, retry_after: int) -> ApiError:
    """503 with how long to wait."""
    return ApiError(503, "timeout", message, headers={"Retry-After": str(retry_after)}, reason="timeout")


def not_ready(message: str, retry_after: int = 5) -> ApiError:
    """503 with how long to wait."""
    return ApiError(503, "not_ready", message, headers={"Retry-After": str(retry_after)})


def failed(message: str) -> ApiError:
    """500, or 424 in TEI's dialect: the model failed."""
    return ApiError(500, "internal_error", message, tei_status=424)


def not_supported(message: str, *, status: int = 400, tei_status: int = 424) -> ApiError:
    """The model cannot do what was asked."""
    return ApiError(status, "model_not_supported", message, param="model", tei_status=tei_status, reason="invalid")


def unknown_model(known: int) -> ApiError:
    """404; the client's name is not repeated."""
    message = f"no such model is served; GET /v1/models lists the {known} there are"
    return ApiError(404, "model_not_found", message, param="model", reason="invalid")
