import type { AnalyzeRealtimeRequest, AnalyzeRealtimeResponse, ErrorBody, EventRefusal } from "./contract.js";

/** HTTP statuses that mean "later", as canonical gRPC codes. */
const LATER = new Map([
  [408, 4],
  [429, 8],
  [502, 14],
  [503, 14],
  [504, 4],
]);

/** Sends one event by POST. Undefined means that the server could not be reached at all. */
export async function analyze(
  url: string,
  request: AnalyzeRealtimeRequest,
  send: typeof fetch,
  deadlineMs: number,
): Promise<{ accepted: AnalyzeRealtimeResponse } | { refused: EventRefusal } | undefined> {
  try {
    const response = await send(url, {
      method: "POST",
      credentials: "same-origin",
      headers: { "content-type": "application/json", "x-correlation-id": request.correlationId },
      body: JSON.stringify(request),
      signal: AbortSignal.timeout(deadlineMs),
    });
    const body: unknown = await response.json();
    if (response.ok) return { accepted: body as AnalyzeRealtimeResponse };
    const { error, errorCode, suggestedAction } = body as ErrorBody;
    const code = LATER.get(response.status) ?? 9;
    return {
      refused: { eventId: request.eventData.eventId, code, reason: errorCode, message: error, suggestedAction },
    };
  } catch {
    return undefined;
  }
}
