export { type WatchOptions, watchAlerts } from "./alerts.js";
export {
  type Capture,
  type CapturedEvent,
  type CaptureOptions,
  type CaptureProgress,
  createCapture,
} from "./capture.js";
export * from "./contract.js";
export { randomId } from "./ids.js";
export { PRIVACY_NOTICE } from "./privacy.js";
export type { ConnectionState } from "./socket.js";
export { createTransport, type Outcome, type Transport, type TransportOptions } from "./transport.js";
