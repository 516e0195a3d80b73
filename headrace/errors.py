"""The one error table: every refusal that a user can meet, with its HTTP status and meaning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One row of the error table.

    ``code`` is the stable machine-readable name, ``status`` the HTTP status, ``type`` the OpenAI error type,
    ``retry_after`` seconds to wait before the same call may succeed (``None``: never by waiting).
    """

    code: str
    status: int
    type: str
    meaning: str
    retry_after: int | None = None


ERROR_TABLE: dict[str, ErrorKind] = {
    kind.code: kind
    for kind in (
        ErrorKind("invalid_json", 400, "invalid_request_error", "The body is not valid JSON."),
        ErrorKind("unknown_parameter", 400, "invalid_request_error", "The request has a field that does not exist here."),
        ErrorKind("unsupported_parameter", 400, "invalid_request_error", "The field exists, this server or model can't honour it."),
        ErrorKind("invalid_value", 400, "invalid_request_error", "A field's value is of the wrong type or out of bounds."),
        ErrorKind("missing_parameter", 400, "invalid_request_error", "A required field is absent."),
        ErrorKind(
            "context_length_exceeded", 400, "invalid_request_error", "Prompt and wanted output don't fit the model's context."
        ),
        ErrorKind(
            "invalid_grammar", 400, "invalid_request_error", "The schema, regex or choice list can't be compiled within limits."
        ),
        ErrorKind("invalid_template", 400, "invalid_request_error", "The chat template refused the messages."),
        ErrorKind("invalid_api_key", 401, "authentication_error", "No API key, or one that the server does not know."),
        ErrorKind("permission_denied", 403, "permission_error", "The key may not do this."),
        ErrorKind("not_found", 404, "not_found_error", "No such route."),
        ErrorKind("model_not_found", 404, "not_found_error", "No model of this name is served."),
        ErrorKind("adapter_not_found", 404, "not_found_error", "No adapter of this name is registered, or no longer."),
        ErrorKind("adapter_conflict", 409, "invalid_request_error", "Another generation has the adapter's name than was expected."),
        ErrorKind("file_not_found", 404, "not_found_error", "No file of this key has this id."),
        ErrorKind("response_not_found", 404, "not_found_error", "No response of this key has this id, or no longer."),
        ErrorKind("batch_not_found", 404, "not_found_error", "No batch of this key has this id."),
        ErrorKind("job_not_found", 404, "not_found_error", "No fine-tuning job of this key has this id."),
        ErrorKind("invalid_training_file", 400, "invalid_request_error", "Lines of a training file can't be learnt from."),
        ErrorKind("invalid_validation_file", 400, "invalid_request_error", "Lines of a validation file can't be learnt from."),
        ErrorKind("state_conflict", 409, "invalid_request_error", "What is asked for can't be done in the object's present state."),
        ErrorKind("training_failed", 500, "server_error", "A fine-tuning job could not go on; its message says at which step."),
        ErrorKind("method_not_allowed", 405, "invalid_request_error", "The route exists, the method does not."),
        ErrorKind("body_too_large", 413, "invalid_request_error", "The body is over the size limit."),
        ErrorKind("headers_too_large", 431, "invalid_request_error", "The request's headers are over the size limit."),
        ErrorKind("body_timeout", 408, "invalid_request_error", "The request's body did not arrive in time."),
        ErrorKind("rate_limit_exceeded", 429, "rate_limit_error", "The key's requests or tokens a minute are used up."),
        ErrorKind("quota_exceeded", 429, "rate_limit_error", "The key keeps as much as it may: waiting does not help."),
        ErrorKind("queue_full", 429, "rate_limit_error", "Too many requests are waiting.", retry_after=1),
        ErrorKind("internal_error", 500, "api_error", "A bug in the server; the request id finds it in the log."),
        ErrorKind("file_damaged", 500, "api_error", "A kept file's bytes have changed on the server's disk."),
        ErrorKind("storage_full", 507, "api_error", "The server's disk is full."),
        ErrorKind("state_unavailable", 503, "api_error", "The server has no folder for files, batches and jobs."),
        ErrorKind("engine_dead", 503, "api_error", "The engine process has ended.", retry_after=5),
        ErrorKind("loading", 503, "api_error", "The model is still loading.", retry_after=1),
        ErrorKind("model_failed", 503, "api_error", "This model can't be loaded now; the message says why.", retry_after=5),
        ErrorKind("overloaded", 503, "api_error", "The first token could not come as soon as is promised.", retry_after=1),
        ErrorKind("draining", 503, "api_error", "The server is shutting down and takes no new requests.", retry_after=5),
        ErrorKind("deadline_exceeded", 504, "timeout_error", "The request's own deadline passed before it finished."),
        ErrorKind("model_file", 400, "model_error", "A model file is damaged, lies about its contents or is of an unknown kind."),
        ErrorKind("unsupported_machine", 400, "machine_error", "This CPU or system lacks something that is required."),
        ErrorKind(
            "invalid_setting", 400, "settings_error", "An option, file key or environment variable is unknown or out of bounds."
        ),
    )
}


class HeadraceError(Exception):
    """A refusal with a row in :data:`ERROR_TABLE`.

    ``message`` is safe to show to a client: no paths, addresses or tracebacks. ``param`` names the field at fault.
    ``retry_after``: seconds after which it may go better; the row's own value where it is left out.
    """

    def __init__(self, code: str, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind = ERROR_TABLE[code]
        self.message = message
        self.param = param
        self.retry_after = retry_after if retry_after is not None else self.kind.retry_after

    @property
    def code(self) -> str:
        """The stable name of the row."""
        return self.kind.code
