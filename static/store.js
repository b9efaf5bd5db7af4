// @ts-check
/** The browser's storage. If it is blocked or full, values last as long as the page. */

/** @param {"localStorage" | "sessionStorage"} name */
function storage(name) {
  /** @type {Map<string, string>} */
  const memory = new Map();
  return {
    /** @param {string} key */
    get(key) {
      try {
        return memory.get(key) ?? window[name].getItem(key) ?? "";
      } catch {
        return memory.get(key) ?? "";
      }
    },
    /** @param {string} key @param {string} value empty removes it */
    set(key, value) {
      try {
        if (value) window[name].setItem(key, value);
        else window[name].removeItem(key);
        memory.delete(key);
      } catch {
        memory.set(key, value);
      }
    },
  };
}

/** Kept for all tabs of this browser. */
export const lasting = storage("localStorage");
/** Kept for this tab, over reloads. */
export const visit = storage("sessionStorage");

/** A channel to the other tabs of this browser, or null if it is blocked. @param {string} name */
export function channel(name) {
  try {
    return new BroadcastChannel(name);
  } catch {
    return null;
  }
}
