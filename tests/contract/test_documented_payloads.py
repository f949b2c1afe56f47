"""Requests and answers have the fields that the data-flow document writes down, under its names."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from behaviorguard.monitoring.v1 import health_pb2
from google.protobuf import json_format

from infra.contracts.model import is_map, short_name

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

    from infra.contracts.model import Contracts

# The document's payloads: a nested mapping is a message, a tuple an enum's values, None anything.
PAYLOADS: dict[str, dict[str, Any]] = {
    "behaviorguard.identity.v1.LoginRequest": {
        "email": None,
        "password": None,
        "biometricData": None,
        "deviceFingerprint": {},
    },
    "behaviorguard.identity.v1.LoginResponse": {
        "success": None,
        "user": {"userId": None, "email": None},
        "quantumSecured": None,
        "securityLevel": None,
    },
    "behaviorguard.identity.v1.VerifyBiometricRequest": {
        "userId": None,
        "biometricData": None,
        "biometricType": ("face", "fingerprint"),
        "deviceId": None,
        "timestamp": None,
    },
    "behaviorguard.identity.v1.VerifyBiometricResponse": {
        "success": None,
        "confidence": None,
        "templateId": None,
        "quantumEncrypted": None,
    },
    "behaviorguard.identity.v1.ProcessMobileRequest": {
        "userId": None,
        "biometricData": None,
        "biometricType": None,
        "deviceId": None,
        "processingMode": ("enrollment", "verification"),
        "qualityThreshold": None,
    },
    "behaviorguard.identity.v1.ProcessMobileResponse": {
        "success": None,
        "biometricTemplate": {},
        "qualityScore": None,
        "livenessScore": None,
        "processingTime": None,
    },
    "behaviorguard.quantum.v1.EncryptTemplateRequest": {"userId": None, "biometricTemplate": None, "algorithm": None},
    "behaviorguard.quantum.v1.EncryptTemplateResponse": {
        "encryptedTemplate": None,
        "publicKey": None,
        "keyId": None,
        "securityLevel": None,
    },
    "behaviorguard.quantum.v1.EncryptBiometricRequest": {
        "userId": None,
        "deviceId": None,
        "biometricTemplate": {},
        "algorithm": None,
        "securityLevel": None,
    },
    "behaviorguard.quantum.v1.EncryptBiometricResponse": {
        "encryptedBiometric": {"encryptedTemplate": None, "publicKey": None, "ciphertext": None, "authTag": None},
        "keyId": None,
        "encryptionAlgorithm": None,
        "quantumSecured": None,
    },
    "behaviorguard.quantum.v1.GenerateTokenRequest": {"userId": None, "claims": {}, "hybridMode": None},
    "behaviorguard.quantum.v1.GenerateTokenResponse": {
        "hybridToken": None,
        "classicalToken": None,
        "quantumSignature": {},
        "expiresIn": None,
    },
    "behaviorguard.quantum.v1.GenerateKeyRequest": {
        "keyType": ("master", "service", "device"),
        "algorithm": None,
        "purpose": ("encryption", "signing", "both"),
        "organizationId": None,
        "serviceId": None,
        "deviceId": None,
        "securityLevel": None,
    },
    "behaviorguard.quantum.v1.GenerateKeyResponse": {
        "keyId": None,
        "publicKey": None,
        "algorithm": None,
        "securityLevel": None,
        "expiresAt": None,
        "keyHandle": None,
        "quantumSecured": None,
    },
    "behaviorguard.hsm.v1.GenerateKeyResponse": {
        "keyId": None,
        "publicKey": None,
        "keyHandle": None,
        "entropy": None,
        "generationTime": None,
    },
    "behaviorguard.quantum.v1.AuditRecord": {
        "auditId": None,
        "operation": ("keygen", "encrypt", "decrypt", "sign", "verify"),
        "keyId": None,
        "userId": None,
        "organizationId": None,
        "operationTimestamp": None,
        "sourceIp": None,
        "correlationId": None,
        "operationData": None,
        "result": ("success", "failure", "partial"),
        "errorDetails": None,
    },
    "behaviorguard.mobile.v1.CaptureBiometricRequest": {
        "userId": None,
        "deviceId": None,
        "biometricType": ("face", "fingerprint"),
        "biometricData": None,
        "captureMetadata": {
            "timestamp": None,
            "cameraResolution": None,
            "lightingConditions": None,
            "deviceOrientation": None,
            "biometricQuality": None,
        },
        "quantumSecured": None,
    },
    "behaviorguard.mobile.v1.CaptureBiometricResponse": {
        "success": None,
        "biometricId": None,
        "quantumSecured": None,
        "securityLevel": None,
        "deviceRegistered": None,
        "qualityScore": None,
        "nextAction": ("verification_ready", "additional_capture_needed"),
    },
    "behaviorguard.threat.v1.AnalyzeRealtimeRequest": {
        "userId": None,
        "eventData": {
            "sessionId": None,
            "behavioralMetrics": {
                "mouseDynamics": {},
                "keystrokeDynamics": {},
                "navigationPattern": {},
                "sessionDuration": None,
                "apiCallFrequency": None,
                "dataAccessPatterns": {},
            },
            "contextualData": {
                "ipAddress": None,
                "userAgent": None,
                "location": {},
                "deviceFingerprint": None,
                "networkFingerprint": None,
            },
        },
        "timestamp": None,
        "correlationId": None,
    },
    "behaviorguard.threat.v1.AnalyzeRealtimeResponse": {
        "eventId": None,
        "preliminaryRisk": None,
        "processingStatus": ("queued_for_morpheus",),
    },
    "behaviorguard.threat.v1.WatchAlertsResponse": {
        "type": None,
        "data": {
            "userId": None,
            "threatLevel": ("normal", "suspicious", "threat", "critical"),
            "threatScore": None,
            "timestamp": None,
            "recommendations": None,
            "correlationId": None,
        },
    },
    "behaviorguard.monitoring.v1.HealthCheckResponse": {
        "service": None,
        "status": ("healthy", "degraded", "unhealthy"),
        "timestamp": None,
        "version": None,
        "uptime": None,
        "dependencies": {
            "database": {
                "status": ("connected", "disconnected", "slow"),
                "latency_ms": None,
                "connection_pool": {"active": None, "idle": None, "total": None},
            },
            "redis": {"status": None, "latency_ms": None, "memory_usage": None},
            "external_services": {
                "status": ("reachable", "unreachable", "timeout"),
                "latency_ms": None,
                "last_check": None,
            },
        },
        "performance": {
            "requests_per_minute": None,
            "average_response_time": None,
            "error_rate_percent": None,
            "cpu_usage_percent": None,
            "memory_usage_mb": None,
        },
        "quantum_specific": {
            "quantum_operations_per_minute": None,
            "hsm_connection_status": ("connected", "disconnected"),
            "key_cache_hit_rate": None,
            "encryption_success_rate": None,
        },
        "morpheus_specific": {
            "gpu_utilization_percent": None,
            "events_processed_per_second": None,
            "ml_inference_latency_ms": None,
            "pipeline_status": ("running", "stopped", "error"),
            "model_accuracy_percent": None,
        },
    },
    "behaviorguard.monitoring.v1.WatchMonitoringResponse": {
        "type": ("metrics", "alert", "status_change", "performance_update"),
        "timestamp": None,
        "correlation_id": None,
        "data": {
            "service": None,
            "metrics": {"throughput": None, "latency": None, "error_rate": None, "resource_usage": {}},
            "alert": {
                "level": ("info", "warning", "error", "critical"),
                "message": None,
                "affected_services": None,
                "recommended_action": None,
            },
            "status_change": {"previous_status": None, "current_status": None, "reason": None},
            "performance_update": {
                "component": None,
                "metric_name": None,
                "current_value": None,
                "threshold": None,
                "trend": ("improving", "degrading", "stable"),
            },
        },
    },
}
# Values on the broker: snake_case, as the document lists them.
RECORDS = {
    "ThreatEventRecord": "user_id timestamp source correlation_id user_behavior_score network_activity "
    "authentication_patterns biometric_confidence threat_indicators session_duration device_fingerprint_hash "
    "location_consistency api_usage_anomaly data_access_risk typing_pattern_deviation mouse_dynamic_variance "
    "navigation_anomaly privilege_escalation_attempt failed_auth_ratio",
    "ThreatAlertRecord": "event_id user_id threat_score threat_level anomaly_score sequence_threat_score "
    "pattern_anomaly_score ml_confidence processing_time_ms model_versions recommendations correlation_id timestamp",
}


def missing(message: Descriptor, payload: dict[str, Any], path: str = "") -> list[str]:
    """Paths of the payload that the message's JSON does not have."""
    by_json_name = {field.json_name: field for field in message.fields}
    found: list[str] = []
    for name, expected in payload.items():
        here = f"{path}{name}"
        field = by_json_name.get(name)
        if field is None:
            found.append(here)
        elif isinstance(expected, tuple):
            assert field.enum_type is not None, here
            values = {short_name(value) for value in field.enum_type.values}
            found.extend(f"{here}={value}" for value in expected if value not in values)
        elif isinstance(expected, dict):
            assert field.message_type is not None, here
            inner = field.message_type.fields_by_name["value"].message_type if is_map(field) else field.message_type
            assert inner is not None, here
            found.extend(missing(inner, expected, f"{here}."))
    return found


@pytest.mark.parametrize("name", sorted(PAYLOADS))
def test_documented_fields_are_there(contracts: Contracts, name: str) -> None:
    messages = {message.full_name: message for message in contracts.messages()}
    assert missing(messages[name], PAYLOADS[name]) == []


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_broker_records_have_the_documents_fields(contracts: Contracts, name: str) -> None:
    messages = {message.name: message for message in contracts.messages()}
    assert set(RECORDS[name].split()) <= {field.name for field in messages[name].fields}


def test_numbers_of_the_document_are_numbers_in_json(contracts: Contracts) -> None:
    """Protobuf's JSON writes 64-bit integers as strings: what the document calls a number must not be one."""
    messages = {message.full_name: message for message in contracts.messages()}
    for name, payload in PAYLOADS.items():
        for field in messages[name].fields:
            if field.json_name in payload:
                assert field.type not in (field.TYPE_INT64, field.TYPE_UINT64), field.full_name


def test_health_is_written_with_the_documents_names() -> None:
    health = health_pb2.HealthCheckResponse(service="threat", uptime=1.5)
    health.dependencies.database.connection_pool.active = 2
    written = json.loads(json_format.MessageToJson(health))
    assert written["dependencies"]["database"]["connection_pool"] == {"active": 2}
    assert written["uptime"] == 1.5


def test_generated_modules_match_the_descriptors(contracts: Contracts) -> None:
    """The committed stubs and the committed descriptor set come from the same protos."""
    for message in contracts.messages():
        module = importlib.import_module(message.file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
        generated = module.DESCRIPTOR.message_types_by_name[message.name]
        assert [(f.name, f.number, f.type) for f in generated.fields] == [
            (f.name, f.number, f.type) for f in message.fields
        ]
