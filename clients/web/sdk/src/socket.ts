import { Backoff, type BackoffOptions } from "./backoff.js";

/** `open`: in use. `retrying`: dropped, will try again. `refused`: the server will not have us, trying again is of no use. */
export type ConnectionState = "connecting" | "open" | "retrying" | "refused" | "closed";

/** The part of WebSocket that is used here; tests bring their own. */
export interface SocketLike {
  onopen: ((event: Event) => void) | null;
  onmessage: ((event: MessageEvent) => void) | null;
  onclose: ((event: CloseEvent) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}
export type SocketFactory = (url: string) => SocketLike;

export interface ConnectionOptions {
  /** Path or address of the endpoint; relative to the page. */
  readonly url: string;
  readonly onOpen: (send: (frame: unknown) => void) => void;
  /** One JSON message. */
  readonly onMessage: (message: unknown) => void;
  readonly onState?: (state: ConnectionState, reason: string) => void;
  /** Called when the connection drops; `code` is the WebSocket's. */
  readonly onDrop?: (code: number) => void;
  readonly backoff?: BackoffOptions;
  readonly socket?: SocketFactory;
}

/** The gateway closes with 4000 + the canonical gRPC code. */
export const GRPC_CLOSE = {
  invalidArgument: 4003,
  notFound: 4005,
  permissionDenied: 4007,
  unauthenticated: 4016,
} as const;
const FINAL: readonly number[] = [GRPC_CLOSE.notFound, GRPC_CLOSE.permissionDenied, GRPC_CLOSE.unauthenticated];

/** A WebSocket that comes back after a drop, until it is closed or refused. */
export class Connection {
  readonly #options: ConnectionOptions;
  readonly #backoff: Backoff;
  #socket: SocketLike | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #state: ConnectionState = "connecting";

  constructor(options: ConnectionOptions) {
    this.#options = options;
    this.#backoff = new Backoff(options.backoff);
    this.#connect();
  }

  get state(): ConnectionState {
    return this.#state;
  }

  /** Attempts that failed in a row. */
  get failures(): number {
    return this.#backoff.failures;
  }

  /** Sends a frame; false when the connection is not open. */
  send(frame: unknown): boolean {
    if (this.#state !== "open" || this.#socket === undefined) return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  /** Gives the connection up and makes a new one: the server stopped answering. */
  restart(): void {
    this.#socket?.close();
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#enter("closed", "");
    this.#socket?.close(1000);
    this.#socket = undefined;
  }

  #connect(): void {
    const make = this.#options.socket ?? ((url: string): SocketLike => new WebSocket(url));
    const socket = make(socketUrl(this.#options.url));
    this.#socket = socket;
    socket.onopen = () => {
      this.#enter("open", "");
      this.#options.onOpen((frame) => socket.send(JSON.stringify(frame)));
    };
    socket.onmessage = ({ data }) => {
      // Only a message proves that the other side works: a proxy may accept and drop again and again.
      this.#backoff.reset();
      const message = parse(data);
      if (message !== undefined) this.#options.onMessage(message);
    };
    socket.onclose = ({ code, reason }) => this.#dropped(code, reason);
  }

  #dropped(code: number, reason: string): void {
    if (this.#state === "closed") return;
    this.#socket = undefined;
    this.#options.onDrop?.(code);
    if (FINAL.includes(code)) {
      this.#enter("refused", reason);
      return;
    }
    this.#enter("retrying", reason);
    this.#timer = setTimeout(() => this.#connect(), this.#backoff.next());
  }

  #enter(state: ConnectionState, reason: string): void {
    this.#state = state;
    this.#options.onState?.(state, reason);
  }
}

function parse(data: unknown): unknown {
  try {
    return typeof data === "string" ? JSON.parse(data) : undefined;
  } catch {
    return undefined; // not ours; what was sent is answered again after the next drop
  }
}

function socketUrl(url: string): string {
  const absolute = new URL(url, globalThis.location?.href);
  absolute.protocol = absolute.protocol.replace("http", "ws");
  return absolute.href;
}
