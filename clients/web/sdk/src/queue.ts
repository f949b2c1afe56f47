import type { AnalyzeRealtimeRequest } from "./contract.js";

interface Entry {
  readonly request: AnalyzeRealtimeRequest;
  sent: boolean;
  returns: number;
}

/** Events without an answer, in the order in which they happened; bounded. */
export class EventQueue {
  readonly #capacity: number;
  #entries: Entry[] = [];

  constructor(capacity: number) {
    this.#capacity = Math.max(1, capacity);
  }

  get size(): number {
    return this.#entries.length;
  }

  get inFlight(): number {
    return this.#entries.filter((entry) => entry.sent).length;
  }

  get oldestInFlight(): string | undefined {
    return this.#entries.find((entry) => entry.sent)?.request.eventData.eventId;
  }

  /** Adds an event; returns the one that had to make room, if any. */
  add(request: AnalyzeRealtimeRequest): AnalyzeRealtimeRequest | undefined {
    this.#entries.push({ request, sent: false, returns: 0 });
    return this.#entries.length > this.#capacity ? this.#entries.shift()?.request : undefined;
  }

  /** The oldest event that is not on its way; it then is. */
  take(): AnalyzeRealtimeRequest | undefined {
    const entry = this.#entries.find((candidate) => !candidate.sent);
    if (entry === undefined) return undefined;
    entry.sent = true;
    return entry.request;
  }

  /** Forgets an answered event; false when it was not waiting. */
  answered(eventId: string): boolean {
    const before = this.#entries.length;
    this.#entries = this.#entries.filter((entry) => entry.request.eventData.eventId !== eventId);
    return this.#entries.length < before;
  }

  /** Puts an event back to be sent again; false when that happened `budget` times before. */
  returnOne(eventId: string, budget: number): boolean {
    const entry = this.#entries.find((candidate) => candidate.request.eventData.eventId === eventId);
    if (entry === undefined || entry.returns >= budget) return false;
    entry.sent = false;
    entry.returns += 1;
    return true;
  }

  /** Puts everything on its way back to be sent again: the connection dropped. */
  returnAll(): void {
    for (const entry of this.#entries) entry.sent = false;
  }

  /** Removes and returns waiting events from before `time`, milliseconds since 1970. */
  takeOlderThan(time: number): AnalyzeRealtimeRequest[] {
    const old = this.#entries.filter((entry) => !entry.sent && Date.parse(entry.request.timestamp) < time);
    this.#entries = this.#entries.filter((entry) => !old.includes(entry));
    return old.map((entry) => entry.request);
  }

  /** Removes and returns everything. */
  clear(): AnalyzeRealtimeRequest[] {
    const requests = this.#entries.map((entry) => entry.request);
    this.#entries = [];
    return requests;
  }
}
