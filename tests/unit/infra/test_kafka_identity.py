from __future__ import annotations

import uuid

from infra.stack.kafka import cluster_id


def test_a_cluster_id_is_never_taken_for_an_option() -> None:
    drawn = iter((uuid.UUID(bytes=b"\xf8" + bytes(15)), uuid.UUID(bytes=bytes(16))))
    assert cluster_id(lambda: next(drawn)) == "A" * 22
