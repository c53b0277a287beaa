"""The tokens at the door of a gRPC server: one look per call, before a thread is given to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from scorer.ports.tokens import Refusal, Role, Tokens

# Balancers and orchestrators ask for health, and have no token to show; it says nothing that a refused call does not.
OPEN = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")


class Door(grpc.ServerInterceptor):  # type: ignore[misc]
    """Lets calls in that carry a token of the role."""

    def __init__(self, tokens: Tokens, role: Role, refused: Callable[[str], None]) -> None:
        """refused: told each status that was given here."""
        self._tokens = tokens
        self._role = role
        self._refused = refused

    def intercept_service(self, continuation: Callable[[Any], Any], call: Any) -> Any:
        """gRPC's hook: the method's own handler, or one that refuses."""
        header = next((value for key, value in call.invocation_metadata if key == "authorization"), None)
        refusal = self._tokens.refusal(header, self._role)
        if refusal is None or call.method in OPEN:
            return continuation(call)
        return self._refusing(refusal)

    def _refusing(self, refusal: Refusal) -> Any:
        code = grpc.StatusCode.PERMISSION_DENIED if refusal.known else grpc.StatusCode.UNAUTHENTICATED

        def refuse(_: object, context: grpc.ServicerContext) -> None:
            self._refused(code.name)
            context.abort(code, refusal.text)

        # It takes a stream, as every call is one underneath: so it need not wait for a message that may never come.
        return grpc.stream_unary_rpc_method_handler(refuse)
