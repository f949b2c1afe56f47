import { defineConfig } from "vite";

/** Where `npm run dev` finds the API; the built page is served by the gateway itself. */
const gateway = process.env.BEHAVIORGUARD_GATEWAY ?? "http://127.0.0.1:3000";

export default defineConfig({
  resolve: { conditions: ["source", "module", "browser", "production"] },
  build: {
    outDir: "../dist",
    emptyOutDir: true,
    // The gateway's content security policy allows nothing inline, data addresses included.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    license: { fileName: "licenses.md" },
  },
  server: {
    proxy: {
      "/api": { target: gateway, ws: true },
      "/ws": { target: gateway, ws: true },
    },
  },
});
