import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vite";

/** Where `npm run dev` finds the API; the built page is served by the gateway itself. */
const gateway = process.env.BEHAVIORGUARD_GATEWAY ?? "http://127.0.0.1:3000";

/** Vite collects the licences of scripts; the font comes by way of the style sheet. */
const fontLicence: Plugin = {
  name: "font-licence",
  generateBundle() {
    const source = readFileSync(fileURLToPath(import.meta.resolve("@fontsource-variable/inter/LICENSE")));
    this.emitFile({ type: "asset", fileName: "licenses-font.txt", source });
  },
};

export default defineConfig({
  plugins: [fontLicence],
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
