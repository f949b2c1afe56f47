import { describe, expect, it } from "vitest";
import openapi from "../../../../generated/openapi.json";
import type { AnalyzeRealtimeRequest, WatchAlertsRequest, WatchAlertsResponse } from "../src/contract.js";
import { KEY_CLASSES, LIMITS, POINTER_ACTIONS, THREAT_LEVELS } from "../src/contract.js";

interface Schema {
  $ref?: string;
  type?: string;
  enum?: string[];
  items?: Schema;
  allOf?: Schema[];
  oneOf?: Schema[];
  properties?: Record<string, Schema>;
  maximum?: number;
  maxItems?: number;
}
const document = openapi as unknown as {
  paths: Record<string, unknown>;
  components: { schemas: Record<string, Schema> };
};

function resolve(schema: Schema): Schema {
  if (schema.$ref !== undefined) return resolve(document.components.schemas[schema.$ref.split("/").at(-1) ?? ""] ?? {});
  const inner = schema.allOf?.length === 1 ? schema.allOf[0] : undefined;
  return inner === undefined ? schema : resolve(inner);
}

/** Fails for every name in `value` that the contract's message does not have. */
function expectKnown(value: unknown, schema: Schema, path: string): void {
  const known = resolve(schema);
  if (Array.isArray(value)) {
    for (const [i, item] of value.entries()) expectKnown(item, known.items ?? {}, `${path}[${i}]`);
  } else if (typeof value === "object" && value !== null) {
    for (const [name, inner] of Object.entries(value)) {
      expect(known.properties, path).toHaveProperty([name]);
      expectKnown(inner, known.properties?.[name] ?? {}, `${path}.${name}`);
    }
  } else if (known.enum !== undefined) {
    expect(known.enum, path).toContain(value);
  }
}

function message(name: string): Schema {
  const found = Object.entries(document.components.schemas).find(([key]) => key.split(".").at(-1) === name);
  expect(found, `${name} is in the OpenAPI document`).toBeDefined();
  return found?.[1] ?? {};
}

const request: AnalyzeRealtimeRequest = {
  userId: "u",
  timestamp: "2026-01-01T00:00:00Z",
  correlationId: "c",
  eventData: {
    eventId: "e",
    sessionId: "s",
    source: "behavioral",
    behavioralMetrics: {
      mouseDynamics: [{ timeMs: [0], xPx: [0], yPx: [0], actions: [...POINTER_ACTIONS] }],
      keystrokeDynamics: [
        { promptId: "p", keyClasses: [...KEY_CLASSES], holdMs: [1], flightMs: [0], pressure: [1], contactSize: [1] },
      ],
      navigationPattern: { views: ["v"], dwellMs: [1] },
      sessionDuration: 1,
    },
    contextualData: { userAgent: "a", deviceFingerprint: "d", networkFingerprint: "n", simulatedFields: [] },
  },
};
const watch: WatchAlertsRequest = { userIds: ["u"], minimumLevel: "normal", sessionId: "s", resumeToken: "t" };
const alert: Required<WatchAlertsResponse> = {
  type: "threat_alert",
  resumeToken: "t",
  data: {
    userId: "u",
    threatLevel: "critical",
    threatScore: 1,
    timestamp: "2026-01-01T00:00:00Z",
    recommendations: [],
    correlationId: "c",
    eventId: "e",
    sessionId: "s",
    reasons: [{ feature: "f", text: "t", deviation: 1, contribution: 1, modality: "typing", simulated: true }],
    mlConfidence: 1,
    anomalyScore: 1,
    sequenceThreatScore: 1,
    patternAnomalyScore: 1,
    processingTimeMs: 1,
  },
};

describe("the wire types", () => {
  it.each([
    ["AnalyzeRealtimeRequest", request],
    ["AnalyzeRealtimeResponse", { eventId: "e", preliminaryRisk: 0, processingStatus: "queued_for_morpheus" }],
    ["EventRefusal", { eventId: "e", code: 3, reason: "r", message: "m", suggestedAction: "s" }],
    ["WatchAlertsRequest", watch],
    ["WatchAlertsResponse", alert],
    ["StartTrialRequest", { label: "l" }],
    ["StartTrialResponse", { userId: "u", sessionId: "s", expiresAt: "t" }],
    [
      "RiskProfile",
      { riskScore: 0, baseline: { typingSamples: 0, mouseSamples: 0, samplesNeeded: 0, enrolling: true } },
    ],
    ["EraseBehaviorResponse", { eventsErased: "1" }],
  ])("%s has every field that is used here", (name, value) => {
    expectKnown(value, message(name), name);
  });

  it("know every class, action and level of the contract", () => {
    const names = (name: string) => new Set(resolve(message(name)).enum);
    expect(names("KeyClass")).toEqual(new Set(KEY_CLASSES));
    expect(names("PointerAction")).toEqual(new Set(["unspecified", ...POINTER_ACTIONS]));
    expect(names("ThreatLevel")).toEqual(new Set(["unspecified", ...THREAT_LEVELS]));
  });

  it("keep the contract's limits", () => {
    expect(message("KeystrokePattern").properties?.holdMs?.maxItems).toBe(LIMITS.keys);
    expect(message("MousePattern").properties?.timeMs?.maxItems).toBe(LIMITS.points);
    expect(message("BehavioralMetrics").properties?.sessionDuration?.maximum).toBe(LIMITS.sessionSeconds);
    expect(message("NavigationData").properties?.views?.maxItems).toBe(LIMITS.views);
  });

  it.each(["/api/threat/trials", "/api/threat/analyze-realtime", "/api/threat/stream", "/ws"])(
    "%s is a path",
    (path) => {
      expect(document.paths).toHaveProperty([path]);
    },
  );
});
