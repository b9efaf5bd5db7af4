// @ts-check
/** The panels beside the conversation: the list, the wire, and the line above the composer. */

import { button, byId } from "./dom.js";
import { lasting } from "./store.js";
import { words } from "./words.js";

// From these widths on a panel stands beside the conversation, see the style sheets.
const WIDE = matchMedia("(min-width: 64.01rem)");
const WITH_LIST = matchMedia("(min-width: 82.01rem)");

let drawWire = () => {};

/** Shows the panels that have room, and lets their buttons work. @param {() => void} draw draws the wire */
export function watchPanels(draw) {
  drawWire = draw;
  byId("wire-toggle").addEventListener("click", () => {
    const shown = byId("wire").hidden === true;
    lasting.set("wire", shown ? "open" : "closed");
    showWire(shown);
  });
  byId("wire-close").addEventListener("click", () => {
    lasting.set("wire", "closed");
    showWire(false);
    byId("wire-toggle").focus();
  });
  byId("threads-toggle").addEventListener("click", () => showDrawer(byId("drawer").hidden === true));
  for (const id of ["drawer-close", "backdrop"])
    byId(id).addEventListener("click", () => {
      showDrawer(false);
      byId("threads-toggle").focus();
    });
  WITH_LIST.addEventListener("change", () => showDrawer(WITH_LIST.matches));
  WIDE.addEventListener("change", () => showWire(WIDE.matches && lasting.get("wire") !== "closed"));

  showDrawer(WITH_LIST.matches);
  showWire(WIDE.matches && lasting.get("wire") !== "closed");
}

/** Closes the panel that lies over the conversation. @returns {boolean} whether there was one */
export function closeTop() {
  const top = document.body.hasAttribute("data-sheet") ? "wire-close" : document.body.hasAttribute("data-drawer") ? "drawer-close" : "";
  if (top) byId(top).click();
  return top !== "";
}

/**
 * Shows a line above the composer, with what can be done about it.
 *
 * @param {string} text
 * @param {string} [label]
 * @param {() => void} [act]
 */
export function say(text, label = "", act = () => {}) {
  byId("notice").replaceChildren(text);
  if (label) byId("notice").append(button(label, act, ""));
  byId("notice").hidden = !text;
}

/** Shows which agent and model this is. @param {{ agent?: string, model?: string }} info */
export function showInfo({ agent = "", model }) {
  const demo = model === "demo";
  const label = byId("model");
  label.textContent = demo ? words.demoShort : (model ?? agent);
  label.title = agent;
  label.hidden = false;
  byId("demo").hidden = !demo;
  // The suggestions name the built-in tools, which an agent of one's own does not have.
  byId("suggestions").hidden = agent.includes(":");
}

/** @param {boolean} shown */
function showWire(shown) {
  byId("wire").hidden = !shown;
  if (shown) drawWire();
  byId("wire-toggle").setAttribute("aria-expanded", String(shown));
  const sheet = shown && !WIDE.matches;
  document.body.toggleAttribute("data-sheet", sheet);
  for (const id of ["main", "header", "drawer"]) byId(id).inert = sheet;
  if (sheet) byId("wire-close").focus();
}

/** @param {boolean} shown */
function showDrawer(shown) {
  byId("drawer").hidden = !shown;
  byId("threads-toggle").setAttribute("aria-expanded", String(shown));
  document.body.toggleAttribute("data-drawer", shown && !WITH_LIST.matches);
  if (shown && !WITH_LIST.matches) byId("drawer-close").focus();
}

export function closeDrawer() {
  if (!WITH_LIST.matches) showDrawer(false);
}
