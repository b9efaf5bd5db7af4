// @ts-check
/** The page's other requests: threads and runs as documents, and the access token. */

import { visit } from "./store.js";
import { refusal } from "./stream.js";

let current = visit.get("token");

/** @param {string} text */
export function useToken(text) {
  current = text;
  visit.set("token", text);
}

export function token() {
  return current;
}

/** @returns {Record<string, string>} */
export function authorization() {
  return current ? { Authorization: `Bearer ${current}` } : {};
}

/** Returns a thread's document, or null if the server has none. @param {string} id */
export async function readThread(id) {
  const response = await fetch(`/api/threads/${encodeURIComponent(id)}`, { headers: authorization(), cache: "no-store" });
  if (response.status === 404) return null;
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/** Returns a run's state, or null if it cannot be read. @param {string} id */
export async function readRun(id) {
  const response = await fetch(`/api/runs/${id}`, { headers: authorization() }).catch(() => null);
  return response?.ok ? response.json().catch(() => null) : null;
}

/** Deletes a thread, and says whether it is gone. @param {string} id */
export async function deleteThread(id) {
  const url = `/api/threads/${encodeURIComponent(id)}`;
  const response = await fetch(url, { method: "DELETE", headers: authorization() }).catch(() => null);
  return response?.ok === true || response?.status === 404;
}
