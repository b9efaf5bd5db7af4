// @ts-check
/** The panels beside the conversation: the list, the wire, and the line above the composer. */

import { button, byId } from "./dom.js";
import { lasting } from "./store.js";
import { words } from "./words.js";

// From these widths on a panel stands beside the conversation, see the style sheets.
const WIDE = matchMedia("(min-width: 64.01rem)");
const WITH_LIST = matchMedia("(min-width: 82.01rem)");

let drawWire = () => {};
const wireFits = () => WIDE.matches && lasting.get("wire") !== "closed";

/** Shows the panels that have room, and lets their buttons work. @param {() => void} draw draws the wire */
export function watchPanels(draw) {
  drawWire = draw;
  const toggleWire = () => {
    const shown = byId("wire").hidden === true;
    lasting.set("wire", shown ? "open" : "closed");
    showWire(shown);
    if (!shown) byId("wire-toggle").focus();
  };
  for (const id of ["wire-toggle", "wire-close"]) byId(id).addEventListener("click", toggleWire);
  byId("threads-toggle").addEventListener("click", () => showDrawer(byId("drawer").hidden === true));
  for (const id of ["drawer-close", "backdrop"])
    byId(id).addEventListener("click", () => {
      showDrawer(false);
      byId("threads-toggle").focus();
    });
  WITH_LIST.addEventListener("change", () => showDrawer(WITH_LIST.matches));
  WIDE.addEventListener("change", () => showWire(wireFits()));

  showDrawer(WITH_LIST.matches);
  showWire(wireFits());
}

/** Closes the panel that lies over the conversation. @returns {boolean} whether there was one */
export function closeTop() {
  const { sheet, drawer } = document.body.dataset;
  const top = sheet !== undefined ? "wire-close" : drawer !== undefined ? "drawer-close" : "";
  if (top) byId(top).click();
  return top !== "";
}

/** Shows a line above the composer. @param {string} text @param {string} [label] of a button @param {() => void} [act] */
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
