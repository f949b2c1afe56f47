import type { BackoffOptions } from "./backoff.js";
import type { CapturedEvent } from "./capture.js";
import { type AnalyzeRealtimeRequest, type AnalyzeRealtimeResponse, type EventRefusal, LIMITS } from "./contract.js";
import { randomId } from "./ids.js";
import { EventQueue } from "./queue.js";
import { analyze } from "./rest.js";
import { Connection, type ConnectionState, GRPC_CLOSE, type SocketFactory } from "./socket.js";

/** What became of an event. `dropped`: it never reached the server, and `message` says why. */
export type Outcome =
  | { readonly kind: "accepted"; readonly eventId: string; readonly answer: AnalyzeRealtimeResponse }
  | { readonly kind: "refused"; readonly eventId: string; readonly refusal: EventRefusal }
  | { readonly kind: "dropped"; readonly eventId: string; readonly message: string };

export interface TransportOptions {
  /** UUID of the person who is signed in. */
  readonly userId: string;
  readonly onOutcome: (outcome: Outcome) => void;
  /** Called when an event leaves for the server, and again when it has to leave again. */
  readonly onSent?: (eventId: string) => void;
  readonly onState?: (state: ConnectionState, reason: string) => void;
  /** Default `/api/threat/stream`. */
  readonly url?: string;
  /** Default `/api/threat/analyze-realtime`; used while the stream cannot be opened. */
  readonly fallbackUrl?: string;
  /** Events kept while the server is away; the oldest goes first. Default 200. */
  readonly capacity?: number;
  /** How long an answer may take before the connection is given up, milliseconds. */
  readonly answerMs?: number;
  readonly backoff?: BackoffOptions;
  readonly socket?: SocketFactory;
  readonly fetch?: typeof fetch;
}

export interface Transport {
  send(captured: CapturedEvent): void;
  /** Events without an answer. */
  readonly pending: number;
  /** Gives up; events without an answer are forgotten. */
  close(): void;
}

/** Sends events as they happen, each until it is answered; ids make a resend harmless. */
export function createTransport(options: TransportOptions): Transport {
  return new StreamTransport(options);
}

/** Attempts to open the stream before events go by single requests. */
const STREAM_ATTEMPTS = 3;
/** Events on their way at once: enough to hide the round trip, few enough to resend after a drop. */
const IN_FLIGHT = 32;
/** A request that was refused as "later" (canonical codes DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE) is sent again this often. */
const RESENDS = 3;
const LATER: readonly number[] = [4, 8, 14];
const RESEND_MS = 1_000;

class StreamTransport implements Transport {
  readonly #options: TransportOptions;
  readonly #queue: EventQueue;
  readonly #stream: Connection;
  #deadline: ReturnType<typeof setTimeout> | undefined;
  #later: ReturnType<typeof setTimeout> | undefined;
  #posting = false;

  constructor(options: TransportOptions) {
    this.#options = options;
    this.#queue = new EventQueue(options.capacity ?? 200);
    this.#stream = new Connection({
      url: options.url ?? "/api/threat/stream",
      ...(options.backoff === undefined ? {} : { backoff: options.backoff }),
      ...(options.socket === undefined ? {} : { socket: options.socket }),
      onOpen: () => this.#pump(),
      onMessage: (message) => this.#answered(message),
      onDrop: (code) => this.#dropped(code),
      onState: (state, reason) => {
        options.onState?.(state, reason);
        if (state === "refused") this.#drop(this.#queue.clear(), reason || "the server ended the session");
      },
    });
  }

  get pending(): number {
    return this.#queue.size;
  }

  send({ event, occurredAt }: CapturedEvent): void {
    const request: AnalyzeRealtimeRequest = {
      userId: this.#options.userId,
      eventData: event,
      timestamp: occurredAt.toISOString(),
      correlationId: randomId(),
    };
    const displaced = this.#queue.add(request);
    if (displaced !== undefined) this.#drop([displaced], "the server is away and the queue is full");
    this.#pump();
  }

  close(): void {
    clearTimeout(this.#deadline);
    clearTimeout(this.#later);
    this.#stream.close();
    this.#queue.clear();
  }

  #pump(): void {
    if (this.#later !== undefined) return; // the server asked for a pause
    this.#drop(this.#queue.takeOlderThan(Date.now() - LIMITS.clockSkewMs * 0.8), "the server was away for too long");
    if (this.#stream.state === "open") this.#pumpStream();
    else if (this.#stream.state === "retrying" && this.#stream.failures >= STREAM_ATTEMPTS) void this.#pumpPosts();
  }

  #pumpStream(): void {
    while (this.#queue.inFlight < IN_FLIGHT) {
      const request = this.#queue.take();
      if (request === undefined) break;
      this.#options.onSent?.(request.eventData.eventId);
      this.#stream.send({ event: request });
    }
    this.#watchDeadline();
  }

  async #pumpPosts(): Promise<void> {
    if (this.#posting) return;
    this.#posting = true;
    try {
      for (let request = this.#queue.take(); request !== undefined; request = this.#queue.take()) {
        const { eventId } = request.eventData;
        this.#options.onSent?.(eventId);
        const url = this.#options.fallbackUrl ?? "/api/threat/analyze-realtime";
        const result = await analyze(url, request, this.#options.fetch ?? fetch, this.#options.answerMs ?? 10_000);
        if (result === undefined) {
          this.#queue.returnAll();
          return; // away altogether: the stream's next attempt tells when it is back
        }
        this.#settle(eventId, result);
      }
    } finally {
      this.#posting = false;
    }
  }

  #answered(message: unknown): void {
    const { accepted, refused } = (message ?? {}) as { accepted?: AnalyzeRealtimeResponse; refused?: EventRefusal };
    // Answers come in the order of the events; an id is missing only where the event was unreadable.
    const eventId = accepted?.eventId ?? (refused?.eventId || undefined) ?? this.#queue.oldestInFlight;
    if (eventId === undefined) return;
    if (accepted !== undefined) this.#settle(eventId, { accepted });
    else if (refused !== undefined) this.#settle(eventId, { refused });
    this.#pump();
  }

  #settle(eventId: string, result: { accepted?: AnalyzeRealtimeResponse; refused?: EventRefusal }): void {
    const { accepted, refused } = result;
    if (refused !== undefined && LATER.includes(refused.code) && this.#queue.returnOne(eventId, RESENDS)) {
      clearTimeout(this.#later);
      this.#later = setTimeout(() => {
        this.#later = undefined;
        this.#pump();
      }, RESEND_MS);
      return;
    }
    if (!this.#queue.answered(eventId)) return;
    if (accepted !== undefined) this.#options.onOutcome({ kind: "accepted", eventId, answer: accepted });
    else if (refused !== undefined) this.#options.onOutcome({ kind: "refused", eventId, refusal: refused });
  }

  #dropped(code: number): void {
    clearTimeout(this.#deadline);
    this.#deadline = undefined;
    if (code === GRPC_CLOSE.invalidArgument) {
      // The oldest frame could not even be read; sent again, it would end the next stream too.
      const eventId = this.#queue.oldestInFlight ?? "";
      const refusal = {
        eventId,
        code: 3,
        reason: "ERROR_REASON_MALFORMED_BODY",
        message: "the event could not be read",
      };
      if (this.#queue.answered(eventId)) this.#options.onOutcome({ kind: "refused", eventId, refusal });
    }
    this.#queue.returnAll();
    // The connection's own state changes after this; a fallback is decided on what it is then.
    queueMicrotask(() => this.#pump());
  }

  #watchDeadline(): void {
    clearTimeout(this.#deadline);
    if (this.#queue.inFlight === 0) return;
    this.#deadline = setTimeout(() => this.#stream.restart(), this.#options.answerMs ?? 10_000);
  }

  #drop(requests: AnalyzeRealtimeRequest[], message: string): void {
    for (const { eventData } of requests)
      this.#options.onOutcome({ kind: "dropped", eventId: eventData.eventId, message });
  }
}
