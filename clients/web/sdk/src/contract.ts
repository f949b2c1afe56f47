/**
 * The part of the threat contract (protos/behaviorguard/threat/v1) that this SDK speaks, in the gateway's JSON form:
 * lowerCamelCase names, enums in short lower case. A test compares these names with generated/openapi.json.
 */

export const KEY_CLASSES = [
  "unspecified",
  "letter_left",
  "letter_right",
  "digit",
  "punctuation",
  "space",
  "modifier",
  "enter",
  "correction",
  "navigation",
] as const;
export type KeyClass = (typeof KEY_CLASSES)[number];

export const POINTER_ACTIONS = [
  "move",
  "drag",
  "press",
  "release",
  "secondary_press",
  "secondary_release",
  "scroll",
] as const;
export type PointerAction = (typeof POINTER_ACTIONS)[number];

export const THREAT_LEVELS = ["normal", "suspicious", "threat", "critical"] as const;
export type ThreatLevel = (typeof THREAT_LEVELS)[number];

/** The contract's bounds on one event. */
export const LIMITS = {
  keys: 256,
  points: 512,
  runs: 8,
  views: 64,
  viewLength: 128,
  holdMs: 10_000,
  flightMs: 60_000,
  pathMs: 600_000,
  pathPx: 100_000,
  sessionSeconds: 604_800,
  dwellMs: 86_400_000,
  clockSkewMs: 300_000,
} as const;

/** A run of keystrokes as parallel columns; milliseconds. */
export interface KeystrokePattern {
  promptId?: string;
  keyClasses: KeyClass[];
  holdMs: number[];
  flightMs: number[];
  pressure?: number[];
  contactSize?: number[];
}

/** A stretch of pointer movement as parallel columns, relative to its first point; milliseconds and pixels. */
export interface MousePattern {
  timeMs: number[];
  xPx: number[];
  yPx: number[];
  actions: PointerAction[];
}

export interface NavigationData {
  views: string[];
  dwellMs: number[];
}

export interface BehavioralMetrics {
  mouseDynamics: MousePattern[];
  keystrokeDynamics: KeystrokePattern[];
  navigationPattern?: NavigationData;
  /** Seconds since the session began. */
  sessionDuration: number;
}

export interface ContextualData {
  userAgent?: string;
  deviceFingerprint?: string;
  networkFingerprint?: string;
  simulatedFields?: string[];
}

export interface BehavioralEvent {
  eventId: string;
  sessionId: string;
  source: "behavioral";
  behavioralMetrics: BehavioralMetrics;
  contextualData?: ContextualData;
}

export interface AnalyzeRealtimeRequest {
  userId: string;
  eventData: BehavioralEvent;
  /** RFC 3339, by this machine's clock. */
  timestamp: string;
  correlationId: string;
}

export interface AnalyzeRealtimeResponse {
  eventId: string;
  /** 0 to 1; proto3 JSON may leave out a zero. */
  preliminaryRisk?: number;
  processingStatus: "queued_for_morpheus" | "already_queued";
}

export interface EventRefusal {
  eventId?: string;
  /** Canonical gRPC status code. */
  code: number;
  reason: string;
  message: string;
  suggestedAction?: string;
}

export interface StreamEventsResponse {
  accepted?: AnalyzeRealtimeResponse;
  refused?: EventRefusal;
}

export interface WatchAlertsRequest {
  userIds: string[];
  minimumLevel: ThreatLevel;
  sessionId?: string;
  resumeToken?: string;
}

export interface Reason {
  feature: string;
  text: string;
  /** Distance from the person's own normal, in units of their own spread. */
  deviation?: number;
  /** Share of the score, 0 to 1. */
  contribution?: number;
  modality: string;
  simulated?: boolean;
}

export interface AlertData {
  userId: string;
  threatLevel: ThreatLevel;
  threatScore?: number;
  timestamp: string;
  recommendations?: string[];
  correlationId: string;
  eventId: string;
  sessionId: string;
  reasons?: Reason[];
  mlConfidence?: number;
  anomalyScore?: number;
  sequenceThreatScore?: number;
  patternAnomalyScore?: number;
  processingTimeMs?: number;
}

export interface WatchAlertsResponse {
  type: "threat_alert";
  data: AlertData;
  resumeToken: string;
}

/** The gateway's form of every error. */
export interface ErrorBody {
  error: string;
  errorCode: string;
  correlationId: string;
  suggestedAction: string;
}
