"""Audit records of what the gateway refuses itself.

A service records each audited call that reaches it. What the gateway turns away (nobody signed in, too low a role, a
body that is none, a spent budget) reaches none, so the record is written here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from servers.mesh.audit import Outcome
from servers.mesh.context import GATEWAY, CallContext
from servers.mesh.errors import ErrorReason
from servers.mesh.limits import WindowLimiter

if TYPE_CHECKING:
    from servers.gateway.admission import Principal
    from servers.gateway.contract import Operation
    from servers.gateway.exchange import Exchange
    from servers.gateway.problems import Problem
    from servers.mesh.audit import AuditSink

_log = logging.getLogger(__name__)

RECORDED_A_MINUTE: Final = 60
"""Refusals of one client at one RPC that are recorded in a minute. Whoever is not let in must not be able to fill the
trail: further ones are in the log alone."""


class RefusalAudit:
    """Writes the records of refusals. One that cannot be written changes nothing: it stays refused; the log says so."""

    def __init__(self, sink: AuditSink) -> None:
        self._sink = sink
        self._limiter = WindowLimiter(capacity=10_000)

    async def refused(
        self, operation: Operation, principal: Principal | None, exchange: Exchange, problem: Problem
    ) -> None:
        """Records a refusal, where the contract says that the operation is audited.

        Args:
            operation: what was asked for.
            principal: who asked; None when that was not found out.
            exchange: the request.
            problem: what it is answered with.
        """
        if not operation.policy.audited:
            return
        reason = ErrorReason.Name(problem.reason)
        if await self._limiter.admit(exchange.client, operation.rpc, RECORDED_A_MINUTE) is not None:
            _log.warning("a refusal was not recorded: too many of one client", extra={"reason": reason})
            return
        call = CallContext(
            operation.rpc,
            GATEWAY,
            exchange.correlation_id,
            end_user=None if principal is None else principal.end_user,
            source_ip=exchange.origin.source_ip,
            user_agent=exchange.origin.user_agent,
        )
        try:
            await self._sink.record(call, Outcome(problem.code.name, reason, problem.message, 0.0))
        except Exception as error:
            said = {"reason": reason, "cause": type(error).__name__, "correlation_id": exchange.correlation_id}
            _log.exception("the audit record of a refusal could not be written", extra=said)
