"""What the quantum service adds to its health report."""

from __future__ import annotations

from collections import Counter

import pytest
from behaviorguard.monitoring.v1 import health_pb2 as pb

from servers.mesh.health_report import Figures
from servers.quantum.health import HitRate, quantum_particulars

TEMPLATES = "/behaviorguard.quantum.v1.TemplateService/"
KEYS = "/behaviorguard.quantum.v1.KeyService/"


def test_the_hit_rate_forgets() -> None:
    now = 0.0
    rate = HitRate(lambda: now)
    assert rate.rate() == 1.0
    rate.miss()
    for _ in range(3):
        rate.hit()
    assert rate.rate() == 0.75
    now = 70.0
    assert rate.rate() == 0.75
    rate.miss()
    assert rate.rate() == 0.6
    now = 140.0
    assert rate.rate() == 0.0
    now = 400.0
    assert rate.rate() == 1.0


@pytest.mark.parametrize("reachable", [True, False])
def test_the_documents_figures(reachable: bool) -> None:
    calls = {
        (TEMPLATES + "EncryptTemplate", "OK"): 3,
        (TEMPLATES + "EncryptTemplate", "UNAVAILABLE"): 1,
        (TEMPLATES + "DecryptTemplate", "OK"): 2,
        (KEYS + "GenerateKey", "OK"): 4,
        ("/behaviorguard.quantum.v1.AuditService/ListAuditRecords", "OK"): 50,
    }
    answer = pb.HealthCheckResponse()
    found = pb.REACHABILITY_STATUS_REACHABLE if reachable else pb.REACHABILITY_STATUS_UNREACHABLE
    answer.dependencies.external_services["hsm"].status = found
    quantum_particulars(HitRate())(Figures(30.0, Counter(calls)), answer)
    specific = answer.quantum_specific
    assert specific.quantum_operations_per_minute == 20
    assert specific.encryption_success_rate == 0.75
    assert specific.key_cache_hit_rate == 1.0
    wanted = pb.CONNECTION_STATUS_CONNECTED if reachable else pb.CONNECTION_STATUS_DISCONNECTED
    assert specific.hsm_connection_status == wanted
