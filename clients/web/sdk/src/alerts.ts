import type { BackoffOptions } from "./backoff.js";
import type { AlertData, ThreatLevel, WatchAlertsRequest, WatchAlertsResponse } from "./contract.js";
import { Connection, type ConnectionState, GRPC_CLOSE, type SocketFactory } from "./socket.js";

export interface WatchOptions {
  /** Default `/ws`. */
  readonly url?: string;
  readonly userIds: string[];
  readonly sessionId?: string;
  /** Default "suspicious", the contract's. */
  readonly minimumLevel?: ThreatLevel;
  /** Go on after this token, received earlier. */
  readonly resumeToken?: string;
  readonly onAlert: (alert: AlertData, resumeToken: string) => void;
  readonly onState?: (state: ConnectionState, reason: string) => void;
  readonly backoff?: BackoffOptions;
  readonly socket?: SocketFactory;
}

/** Follows alerts live. After a drop it goes on behind the last alert received, so that none is lost. */
export function watchAlerts(options: WatchOptions): { close(): void } {
  let token = options.resumeToken ?? "";
  return new Connection({
    url: options.url ?? "/ws",
    ...(options.onState === undefined ? {} : { onState: options.onState }),
    ...(options.backoff === undefined ? {} : { backoff: options.backoff }),
    ...(options.socket === undefined ? {} : { socket: options.socket }),
    onOpen: (send) => {
      const request: WatchAlertsRequest = {
        userIds: options.userIds,
        minimumLevel: options.minimumLevel ?? "suspicious",
        ...(options.sessionId === undefined ? {} : { sessionId: options.sessionId }),
        ...(token === "" ? {} : { resumeToken: token }),
      };
      send(request);
    },
    onDrop: (code) => {
      // The token is too old for the server: what comes next is better than nothing.
      if (code === GRPC_CLOSE.invalidArgument) token = "";
    },
    onMessage: (message) => {
      if (!isAlert(message)) return;
      token = message.resumeToken;
      options.onAlert(message.data, token);
    },
  });
}

function isAlert(message: unknown): message is WatchAlertsResponse {
  return typeof message === "object" && message !== null && "type" in message && message.type === "threat_alert";
}
